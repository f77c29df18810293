"""Ultra-slow diffusion: in a potential whose deviations grow as d^g, ln(time) does as well.

Hoffer, Hubara, Soudry 2017, section 4, take the loss for such a potential: first the law itself in
one dimension, then what it needs of a network.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from largebatch.lab.descent import descend
from largebatch.lab.digits import drawn_digits
from largebatch.lab.experiment import (
    Check,
    Experiment,
    Findings,
    Scale,
    agreed,
    experiments,
    spread,
)
from largebatch.lab.networks import perceptron
from largebatch.lab.pictures import Series, lines
from largebatch.lab.random_potential import log_times, potentials, walk
from largebatch.lab.whole_batch import WholeBatch
from largebatch.optim import SGD
from largebatch.probes.parameter_space import ParameterSpace
from largebatch.report.log_fit import log_fit, straight_line

EXPONENTS = (0.5, 0.75, 0.9)
WIDTHS = (64, 64, 64, 64, 10)
HEIGHT = 30.0  # standard deviation of V after one site


@experiments.register("ultra-slow")
class UltraSlow(Experiment):
    """The law in random potentials; then loss against distance, and distance against time."""

    lecture = "Train longer, generalize better (Hoffer, Hubara, Soudry)"
    claim = "std ~ |w - w(0)|^g; time to pass the tallest barrier t ~ exp(d^g): d ~ log^(1/g) t"
    source = "Hoffer et al. 2017, section 4; Marinari et al. 1983"
    minutes = 1.0

    def measure(self, scale: Scale) -> Findings:
        """Recover g from times; compare one potential's times with walkers; then look at digits."""
        rng = np.random.default_rng(0)
        paths, doublings = scale.pick(160, 1600), scale.pick(13, 16)
        at = 2 ** np.arange(doublings - 6, doublings + 1) - 1
        rows: list[dict[str, float | str]] = []
        checks, curves = [], []
        for exponent in EXPONENTS:
            means = []
            for _ in range(8):
                drawn = HEIGHT * potentials(exponent, paths // 8, 2**doublings, rng)
                means.append(log_times(drawn)[:, at].mean(0))
            # What a doubling of d adds: that sites are whole numbers takes the same off at every d.
            x, added = np.log(at[:-1] + 1.0).tolist(), [np.log(np.diff(m)) for m in means]
            fits = [straight_line(x, y.tolist())[0] for y in added]
            fit, error = float(np.mean(fits)), float(np.std(fits, ddof=1)) / math.sqrt(8)
            rows.append(
                {"g": exponent, "fit": round(fit, 4), "SE": round(error, 4),
                 "1/g": round(1 / fit, 3)}
            )  # fmt: skip
            checks.append(
                Check(f"d ~ (ln t)^a in a potential of g = {exponent}", f"a = {1 / exponent:.3f}",
                      f"a = {1 / fit:.3f} ± {error / fit**2:.3f}", abs(fit - exponent) < 3 * error,
                      True)
            )  # fmt: skip
            mean = np.mean(means, axis=0).tolist()
            curves.append(Series(f"g = {exponent}", mean, (at + 1.0).tolist()))
        checks.append(_walked(scale.pick(800, 20000), rng))
        slopes, fitted, charted = [], [], []
        for seed in scale.seeds:
            slopes.append(_rise(seed))
            steps, distances = _distances(seed, scale.pick(1500, 4000))
            found = log_fit(steps, distances)
            assert found is not None
            fitted.append(found)
            charted.append(Series(f"seed {seed}", steps, distances))
            rows.append(
                {"digits, seed": seed, "g of the loss": round(slopes[-1], 3),
                 "log fit": found.text()}
            )  # fmt: skip
        checks += [
            Check("digits: std of the loss ~ distance^g from the start", "g = 1, so that d ~ log t",
                  f"g = {spread(slopes)}", agreed(0.75 < g < 1.25 for g in slopes)),
            Check("digits, high rate: R² of distance = a + b ln t", "above .95",
                  spread([fit.r2 for fit in fitted], 4), agreed(fit.r2 > 0.95 for fit in fitted)),
        ]  # fmt: skip
        charts = [
            (
                "Distance in random potentials",
                "against the mean of ln T over potentials",
                lines("mean ln t", "d", curves, "xy"),
            ),
            (
                "Weight distance on digits",
                "a straight line: log t",
                lines("step", "|w - w(0)|", charted, "x"),
            ),
        ]
        return Findings(checks, rows, charts)


def _walked(walkers: int, rng: np.random.Generator) -> Check:
    potential = 1.5 * potentials(0.5, 1, 12, rng)
    times, mean = walk(potential[0], walkers, rng), math.exp(log_times(potential)[0, -1])
    error = float(times.std()) / math.sqrt(walkers)
    measured = f"{times.mean():.4g} ± {error:.2g}"
    holds = bool(abs(times.mean() - mean) < 4 * error)
    return Check("mean time of walkers over one potential", f"{mean:.4g}", measured, holds, True)


def _rise(seed: int) -> float:
    """Return the power of the distance that the spread of the loss grows with, over directions."""
    (train, _), model = drawn_digits(300, seed), perceptron(WIDTHS, seed, norm=True)
    space, whole = ParameterSpace(model), WholeBatch(model, train)
    start, at = space.weights(), (0.5, 1.0, 2.0, 4.0, 8.0)
    generator, rises = torch.Generator().manual_seed(seed), []
    for _ in range(50):
        way, row = torch.randn(space.size, generator=generator), []
        for distance in (0.0, *at):
            space.set(start + distance * way / way.norm())
            row.append(float(whole.loss()))
        rises.append([(value - row[0]) ** 2 for value in row[1:]])
    spreads = [math.sqrt(sum(column) / len(column)) for column in zip(*rises, strict=True)]
    return straight_line([math.log(d) for d in at], [math.log(s) for s in spreads])[0]


def _distances(seed: int, steps: int) -> tuple[list[float], list[float]]:
    """Return steps and distances from the start under SGD at a high rate, batch 32."""
    (train, _), model = drawn_digits(1000, seed), perceptron(WIDTHS, seed, norm=True)
    optimizer, space = SGD(model.parameters(), lr=0.1, momentum=0.9), ParameterSpace(model)
    start, found = space.weights(), dict[float, float]()
    points = {round(10 ** (k / 10)) for k in range(int(10 * math.log10(steps)) + 1)}
    for number, _ in enumerate(descend(model, train, optimizer, 32, steps, seed), 1):
        if number in points:
            found[float(number)] = float((space.weights() - start).norm())
    return list(found), list(found.values())
