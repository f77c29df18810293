"""The lecture's table of three rows, before and after each input has mean 0 and variance 1.

Least squares on it has the Hessian X'X / n. Standardised inputs make that (1 r; r 1) beside the
bias, with r their correlation, whose condition number is (1 + |r|) / (1 - |r|) whatever the units.
"""

from __future__ import annotations

import math
import operator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from largebatch.lab.descent import accuracy, fit
from largebatch.lab.digits import digits
from largebatch.lab.experiment import (
    Check,
    Experiment,
    Findings,
    Scale,
    experiments,
    spread,
)
from largebatch.lab.networks import perceptron
from largebatch.lab.paired import compared
from largebatch.lab.pictures import Series, lines
from largebatch.optim import SGD

Floats: TypeAlias = NDArray[np.float64]
INPUTS = np.array([[114.8, 0.00323], [338.1, 0.00183], [98.8, 0.00279]])
TARGETS = np.array([5.1, 3.2, 4.1])
RATES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)


def standardized(x: Floats) -> Floats:
    """Return the columns with mean 0 and variance 1."""
    result: Floats = (x - x.mean(0)) / x.std(0)
    return result


def with_bias(x: Floats) -> Floats:
    """Return the columns and one of ones."""
    return np.concatenate((x, np.ones((len(x), 1))), axis=1)


def curvature(x: Floats) -> tuple[Floats, float, Floats]:
    """Return the Hessian of least squares with a bias, its condition number and eigenvalues.

    By singular values of the inputs: squares of these would not leave the small ones a digit.
    """
    design = with_bias(x) / math.sqrt(len(x))
    values: Floats = np.linalg.svd(design, compute_uv=False).astype(np.float64) ** 2
    return design.T @ design, float(values[0] / values[-1]), values


def losses(x: Floats, steps: int) -> list[float]:
    """Return the excess loss of gradient descent from 0, at the best constant rate."""
    hessian, _, values = curvature(x)
    design = with_bias(x)
    best = np.linalg.lstsq(design, TARGETS, rcond=None)[0]
    off, rate, found = -best, 2 / (values[0] + values[-1]), []
    for _ in range(steps + 1):
        found.append(float(((design @ off) ** 2).mean() / 2))
        off = off - rate * (hessian @ off)
    return found


def trained(scaled: bool, seed: int, steps: int) -> tuple[float, float]:
    """Return the least loss over rates of a network on digits, and that rate's accuracy.

    Args:
        scaled: inputs as runs have them; else as they are stored, 0 to 16.
    """
    samples, held = digits("train"), digits("val")
    if not scaled:
        low, high = samples[0].min(), samples[0].max()
        samples, held = (((x - low) / (high - low) * 16, y) for x, y in (samples, held))
    found = []
    for rate in RATES:
        model = perceptron((64, 64, 10), seed)
        run = fit(model, samples, SGD(model.parameters(), rate), 64, steps, seed)
        last = sum(run[-10:]) / 10
        found.append((last if math.isfinite(last) else math.inf, accuracy(model, held)))
    return min(found)


@experiments.register("input-norm")
class InputNormalization(Experiment):
    """The table, by linear algebra and gradient descent; then a network on digits."""

    lecture = "Training in practice (lecture 3)"
    claim = "Standardizing the input helps with pathological curvature (ill-conditioning)"
    source = "LeCun et al. 1998, Efficient backprop, section 4.3; slide after Grosse"
    minutes = 0.5

    def measure(self, scale: Scale) -> Findings:
        """Compare condition numbers, and steps at the best rate of each."""
        after = standardized(INPUTS)
        r = float(np.corrcoef(INPUTS.T)[0, 1])
        expected = (1 + abs(r)) / (1 - abs(r))
        other = standardized(INPUTS * np.array([1e-3, 1e5]))
        raw, scaled, units = (curvature(x)[1] for x in (INPUTS, after, other))
        steps = 300
        paths = {"as given": losses(INPUTS, steps), "standardized": losses(after, steps)}
        left = {name: path[-1] / path[0] for name, path in paths.items()}
        runs = {
            name: [trained(name == "standardized", s, scale.pick(60, 400)) for s in scale.seeds]
            for name in paths
        }
        ends = {name: [loss for loss, _ in found] for name, found in runs.items()}
        checks = [
            Check("condition number as given", "larger: ill-conditioned",
                  f"{raw:.3g}, {raw / scaled:.2g} times as large", raw > 1e6 * scaled, True),
            Check("condition number of the standardized table",
                  f"(1 + |r|) / (1 - |r|) = {expected:.6g}", f"{scaled:.6g}",
                  bool(abs(scaled / expected - 1) < 1e-9), True),
            Check("the same after a change of units", "unchanged", f"{units:.6g}",
                  bool(abs(units / scaled - 1) < 1e-9), True),
            Check(f"share of the loss left by {steps} steps of gradient descent",
                  "smaller when standardized",
                  f"{left['standardized']:.2g} against {left['as given']:.2g}",
                  left["standardized"] < 0.01 * left["as given"], True),
            compared("network on digits, loss at its best rate", "smaller when standardized",
                     ends["standardized"], ends["as given"], operator.lt),
        ]  # fmt: skip
        rows = [
            {"inputs": name, "condition number": f"{number:.4g}", "loss left": f"{left[name]:.2g}",
             "digits: loss": spread(ends[name]),
             "digits: accuracy": spread([right for _, right in runs[name]])}
            for name, number in (("as given", raw), ("standardized", scaled))
        ]  # fmt: skip
        series = [Series(name, list(range(steps + 1)), path) for name, path in paths.items()]
        chart = (
            "Gradient descent on the table",
            "mean squared error above the least, at rate 2 / (largest + least curvature)",
            lines("step", "excess loss", series, log="y"),
        )
        return Findings(checks, rows, [chart])
