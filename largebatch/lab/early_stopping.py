"""Validation loss rises while validation error falls: no need for early stopping.

Soudry et al. 2018. If the training set is separable, w grows as w_hat log t. So the loss of every
held-out example on the wrong side grows too, however few such examples there are.
"""

from __future__ import annotations

import math

import numpy as np

from largebatch.lab.descent import accuracy, descend
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
from largebatch.lab.implicit_bias import POINTS, RATE, logistic_path
from largebatch.lab.networks import perceptron
from largebatch.lab.pictures import lines, over_seeds
from largebatch.lab.whole_batch import WholeBatch
from largebatch.optim import SGD

OUTLIER = np.array([-1.0, 0.0])  # on the wrong side: its loss tends to ln t - 1.80


@experiments.register("no-es")
class NoEarlyStopping(Experiment):
    """Logistic regression with one outlier held out, then a perceptron on few digits."""

    lecture = "Rethinking Common Practices in Deep Learning (Hoffer)"
    claim = "Validation loss increases, validation error never stops decreasing (slowly)"
    source = "Soudry, Hoffer, Nacson, Srebro 2018"
    minutes = 1.0

    def measure(self, scale: Scale) -> Findings:
        """Follow held-out loss and error far beyond the loss's minimum."""
        path = logistic_path(POINTS, RATE, scale.pick(10**5, 10**6))
        times = [t for t in path if t >= 10]
        losses = [float(np.log1p(np.exp(-OUTLIER @ path[t]))) for t in times]
        slope = (losses[-1] - losses[-11]) / math.log(times[-1] / times[-11])
        last = scale.pick(3000, 60000)
        points = sorted({round(10 ** (k / 8)) for k in range(int(8 * math.log10(last)) + 1)})
        curves: dict[str, list[list[float]]] = {"train": [], "loss": [], "error": [], "norm": []}
        rows = []
        for seed in scale.seeds:
            found = _followed(points, seed)
            for name, curve in found.items():
                curves[name].append(curve)
            least = min(range(len(points)), key=found["loss"].__getitem__)
            rows.append(
                {
                    "seed": seed,
                    "least loss at step": points[least],
                    "least loss": round(found["loss"][least], 4),
                    "loss at the end": round(found["loss"][-1], 4),
                    "error at least loss": round(found["error"][least], 4),
                    "error at the end": round(found["error"][-1], 4),
                    "weight norm, from": round(found["norm"][least], 2),
                    "to": round(found["norm"][-1], 2),
                }
            )
        rises = [row["loss at the end"] / row["least loss"] for row in rows]
        falls = [row["error at the end"] - row["error at least loss"] for row in rows]
        grows = [row["to"] / row["weight norm, from"] for row in rows]
        checks = [
            Check(
                "separable data: held-out outlier's loss, d / d ln t",
                "1: loss of order log t",
                f"{slope:.4f}",
                abs(slope - 1) < 0.02,
                True,
            ),
            Check(
                "digits: held-out loss at the end, of its least",
                "above 1: it rises",
                spread(rises),
                agreed(rise > 1 for rise in rises),
            ),
            Check(
                "digits: held-out error at the end less that at the least loss",
                "at most 0: it still falls",
                spread(falls),
                agreed(fall <= 0 for fall in falls),
            ),
            Check(
                "digits: weight norm at the end, of that at the least loss",
                "above 1: it diverges",
                spread(grows),
                agreed(growth > 1 for growth in grows),
            ),
        ]
        charts = [
            (title, note, lines("step", y, [over_seeds(y, points, curves[name])], log, percent=p))
            for title, note, y, name, log, p in (
                ("Held-out loss", "range over seeds", "loss", "loss", "x", False),
                ("Held-out error", "range over seeds", "error", "error", "x", True),
                ("Training loss", "range over seeds", "loss", "train", "xy", False),
                ("Weight norm", "range over seeds", "norm", "norm", "x", False),
            )
        ]
        return Findings(checks, rows, charts, [f"300 digits, 64 hidden units, {last} steps of all"])


def _followed(points: list[int], seed: int) -> dict[str, list[float]]:
    """Return training loss, held-out loss and error, and weight norm at those steps."""
    (train, held), model = drawn_digits(300, seed), perceptron((64, 64, 10), seed)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    found: dict[str, list[float]] = {"train": [], "loss": [], "error": [], "norm": []}
    for number, loss in enumerate(descend(model, train, optimizer, 300, points[-1], seed), 1):
        if number in points:
            found["train"].append(loss)
            found["loss"].append(float(WholeBatch(model, held).loss()))
            found["error"].append(1 - accuracy(model, held))
            squares = sum(float(p.detach().square().sum()) for p in model.parameters())
            found["norm"].append(math.sqrt(squares))
    return found
