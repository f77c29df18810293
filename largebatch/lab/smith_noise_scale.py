"""Rate and batch act together: SGD's noise has the scale g = e N / (B (1 - m)).

Smith and Le 2018; Smith et al. 2018. On a noisy quadratic the spread at rest is known exactly for
SGD with momentum; settings of equal g rest equally high up to terms of order e h.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

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
from largebatch.lab.pictures import lines, over_seeds
from largebatch.lab.whole_batch import WholeBatch
from largebatch.optim import SGD

CURVATURE, SIGMA = 1.0, 1.0


class Setting(NamedTuple):
    """Learning rate, batch, momentum."""

    rate: float
    batch: int
    momentum: float = 0.0

    @property
    def scale(self) -> float:
        """The noise scale of one sample: rate / (batch (1 - momentum))."""
        return self.rate / (self.batch * (1 - self.momentum))


QUADRATIC = (
    *(Setting(0.02, 1), Setting(0.04, 2), Setting(0.08, 4), Setting(0.02, 2, 0.5)),
    *(Setting(0.02, 10, 0.9), Setting(0.02, 4), Setting(0.08, 1)),
)


def formula(at: Setting) -> float:
    """Return the variance at rest: e s^2 (1 + m) / (B h (1 - m) (2 (1 + m) - e h))."""
    noise = at.rate * SIGMA**2 / at.batch
    rest = (1 - at.momentum) * (2 * (1 + at.momentum) - at.rate * CURVATURE)
    return noise * (1 + at.momentum) / (CURVATURE * rest)


def variance(at: Setting, chains: int, steps: int) -> float:
    """Return the variance of many one-weight runs of the package's SGD from the minimum."""
    generator = torch.Generator().manual_seed(0)
    w = nn.Parameter(torch.zeros(chains, dtype=torch.float64))
    optimizer = SGD([w], lr=at.rate, momentum=at.momentum)
    for _ in range(steps):
        noise = torch.randn(chains, generator=generator, dtype=torch.float64)
        w.grad = CURVATURE * w.detach() + SIGMA / math.sqrt(at.batch) * noise
        optimizer.step()
    return float(w.detach().square().mean())


@experiments.register("smith-g")
class SmithNoiseScale(Experiment):
    """Variances at rest against the formula; then digits at equal and at unequal scales."""

    lecture = "Optimization Techniques (Han, Lee, Seo)"
    claim = "Instead of decaying the rate increase the batch: the noise scale is e N / (B (1 - m))"
    source = "Smith and Le 2018; Smith, Kindermans, Ying, Le 2018"
    minutes = 1.0

    def measure(self, scale: Scale) -> Findings:
        """Run long enough that a thousandth of the start's transient is left."""
        chains, steps = scale.pick((5000, 500), (50000, 2000))
        rows, checks = [], []
        heights: dict[float, list[float]] = {}
        for at in QUADRATIC:
            found, theory = variance(at, chains, steps), formula(at)
            error = theory * math.sqrt(2 / chains)
            heights.setdefault(round(at.scale, 9), []).append(found / at.scale)
            rows.append(
                {**at._asdict(), "g / N": round(at.scale, 5), "variance": round(found, 6),
                 "formula": round(theory, 6)}
            )  # fmt: skip
            checks.append(
                Check(f"variance at rest, rate {at.rate}, batch {at.batch}, momentum {at.momentum}",
                      f"{theory:.5f}", f"{found:.5f} ± {error:.5f}",
                      abs(found - theory) < 4 * error, True)
            )  # fmt: skip
        equal = heights[round(QUADRATIC[0].scale, 9)]
        checks.insert(
            0,
            Check(f"variance over g, {len(equal)} settings of g / N = {QUADRATIC[0].scale}",
                  "the same", spread(equal), max(equal) < 1.1 * min(equal)),
        )  # fmt: skip
        epochs = scale.pick(10, 40)
        settings = (Setting(0.02, 8), Setting(0.04, 16), Setting(0.08, 32), Setting(0.02, 32))
        curves, ends = [], []
        for at in settings:
            runs = [_losses(at, seed, epochs) for seed in scale.seeds]
            curves.append(
                over_seeds(f"rate {at.rate}, batch {at.batch}", list(range(1, epochs + 1)), runs)
            )
            ends.append([run[epochs // 2 - 1] for run in runs])
            rows.append(
                {**at._asdict(), "g / N": at.scale, f"loss, epoch {epochs // 2}": spread(ends[-1])}
            )
        apart = [
            max(e[k] for e in ends[:3]) / min(e[k] for e in ends[:3]) for k in range(len(ends[0]))
        ]
        other = [ends[3][k] / ends[0][k] for k in range(len(ends[0]))]
        checks.append(
            Check("digits: largest over least loss, three settings of one g; and with a quarter of"
                  " g", "1 at one g, not at another", f"{spread(apart)}; {spread(other)}",
                  agreed(a < max(b, 1 / b) for a, b in zip(apart, other, strict=True)))
        )  # fmt: skip
        note = "training loss; three of the same rate over batch, one of a quarter of it"
        chart = ("Digits", note, lines("epoch", "loss", curves, "y"))
        return Findings(checks, rows, [chart])


def _losses(at: Setting, seed: int, epochs: int) -> list[float]:
    """Return the training loss after each epoch."""
    (train, _), model = drawn_digits(1024, seed), perceptron((64, 64, 10), seed)
    optimizer, whole = SGD(model.parameters(), lr=at.rate), WholeBatch(model, train)
    each, found = 1024 // at.batch, []
    for number, _ in enumerate(descend(model, train, optimizer, at.batch, epochs * each, seed), 1):
        if number % each == 0:
            found.append(float(whole.loss()))
    return found
