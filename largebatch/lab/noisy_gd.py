"""Gradient descent with noise that is cooled, and the leaky rule of 1988.

Bourrely 1988, as the lecture cites it: W' = (1 - a) W - e a f(W) and W' = W - e N(f, k sqrt(T)).
The second draws the gradient with noise. The first is presented as momentum but has no memory of
past steps. It comes to rest where W = -e f(W), at the minimum of the loss plus |W|^2 / (2 e). So it
is weight decay.
"""

from __future__ import annotations

import math

import torch

from largebatch.lab.experiment import (
    Check,
    Experiment,
    Findings,
    Scale,
    agreed,
    experiments,
    spread,
)
from largebatch.lab.pictures import Series, lines

SIGMA = 1.0
SIZES = (0.1, 0.5, 1.0, 1.5)  # step size times curvature
BARRIER, TILT = 1.0, 0.3


def stationary(step: float, chains: int, steps: int, seed: int) -> float:
    """Return the variance of w' = w - e (w + noise) over many chains, curvature 1."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.zeros(chains, dtype=torch.float64)
    for _ in range(steps):
        noise = torch.randn(chains, generator=generator, dtype=torch.float64)
        w -= step * (w + SIGMA * noise)
    return float(w.square().mean())


def escape(temperature: float, chains: int, steps: int, seed: int) -> list[float]:
    """Return the share of chains in the deeper of two wells, from the shallower, over time.

    Q(w) = BARRIER (w^2 - 1)^2 + TILT w; the temperature falls as 1 - t/T.
    """
    generator = torch.Generator().manual_seed(seed)
    w, step = torch.ones(chains, dtype=torch.float64), 0.02
    shares = []
    for number in range(steps):
        slope = 4 * BARRIER * w * (w.square() - 1) + TILT
        cooled = math.sqrt(2 * temperature * (1 - number / steps) / step)
        noise = torch.randn(chains, generator=generator, dtype=torch.float64)
        w -= step * (slope + cooled * noise)
        if number % (steps // 100) == 0:
            shares.append(float((w < 0).double().mean()))
    return shares


def leaky(leak: float, step: float, centre: float, steps: int) -> float:
    """Return where W' = (1 - a) W - e a f(W) rests, f of the quadratic around ``centre``."""
    w = 0.0
    for _ in range(steps):
        w = (1 - leak) * w - step * leak * (w - centre)
    return w


@experiments.register("noisy-gd")
class NoisyDescent(Experiment):
    """The stationary variance, the leaky rule's rest, and the way out of a shallow minimum."""

    lecture = "An overview of empirical studies in NNs (Sagun)"
    claim = "GD is bad use SGD: add a random noise to the gradient, like simulated annealing"
    source = "Bourrely 1988; Bottou 1991"
    minutes = 0.3

    def measure(self, scale: Scale) -> Findings:
        """Compare variances with e^2 s^2 / (1 - (1 - e h)^2), h = 1."""
        chains = scale.pick(100_000, 400_000)
        rows: list[dict[str, float | str]] = []
        checks = []
        for size in SIZES:
            theory = size**2 * SIGMA**2 / (1 - (1 - size) ** 2)
            # |1 - e h|^steps < 1e-5 of the start is left
            steps = 1 if size == 1 else math.ceil(math.log(1e-5) / math.log(abs(1 - size)))
            found = stationary(size, chains, max(steps, 2), 0)
            error = theory * math.sqrt(2 / chains)
            rows.append(
                {
                    "e h": size,
                    "variance": round(found, 5),
                    "formula": round(theory, 5),
                    "SE": round(error, 5),
                }
            )
            checks.append(
                Check(
                    f"stationary variance at e h = {size}",
                    f"{theory:.5f}",
                    f"{found:.5f} ± {error:.5f}",
                    abs(found - theory) < 4 * error,
                    True,
                )
            )
        rest = leaky(0.1, 2.0, 1.0, 1000)
        checks.append(
            Check(
                "the leaky rule rests at e h c / (1 + e h), not at the minimum c = 1",
                f"{2 / 3:.6f}",
                f"{rest:.6f}",
                abs(rest - 2 / 3) < 1e-9,
                True,
            )
        )
        steps, many = scale.pick(2000, 20000), scale.pick(2000, 4000)
        curves, ends = [], {}
        for temperature in (0.0, 0.1, 0.3, 0.6):
            runs = [escape(temperature, many, steps, seed) for seed in scale.seeds]
            ends[temperature] = [run[-1] for run in runs]
            curves.append(
                Series(f"temperature {temperature}", list(range(0, steps, steps // 100)), runs[0])
            )
            rows.append({"temperature": temperature, "escaped": spread(ends[temperature])})
        noisy = [max(ends[t][k] for t in ends) for k in range(len(scale.seeds))]
        checks += [
            Check(
                "escapes without noise",
                "none",
                spread(ends[0.0]),
                agreed(s == 0 for s in ends[0.0]),
            ),
            Check(
                "escapes with cooled noise",
                "usually",
                spread(noisy),
                agreed(s > 0.5 for s in noisy),
            ),
        ]
        chart = lines("step", "", curves, percent=True)
        note = "share of chains in the deeper well, all started in the shallower; first seed"
        return Findings(checks, rows, [("Out of a local minimum", note, chart)])
