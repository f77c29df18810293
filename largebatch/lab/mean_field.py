"""One hidden layer with outputs divided by its width N: as N grows SGD becomes gradient descent.

Mei, Montanari, Nguyen 2018; Sirignano and Spiliopoulos 2018 (central limit theorem): N units, each
moved by 1/N a sample, N samples a unit of time. Against gradient descent over the same time from
the same start, the square of the distance of the outputs is of order 1/N.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from largebatch.lab.experiment import (
    Check,
    Experiment,
    Findings,
    Scale,
    agreed,
    experiments,
    spread,
)
from largebatch.lab.pictures import Series, lines, over_seeds, scatter
from largebatch.report.log_fit import straight_line

INPUTS, SAMPLES, RATE = 5, 64, 2.0


class Particles:
    """f(x) = (1/N) sum of a tanh(w x): the units are particles that move in the mean of all."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.w = torch.randn(count, INPUTS, generator=generator, dtype=torch.float64)
        self.a = torch.randn(count, generator=generator, dtype=torch.float64)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the outputs (n,) at (n, 5)."""
        return torch.tanh(x @ self.w.T) @ self.a / len(self.a)

    def step(self, x: Tensor, y: Tensor, rate: float) -> None:
        """Move each unit down N times the gradient of half the mean squared error."""
        hidden = torch.tanh(x @ self.w.T)
        wrong = (hidden @ self.a / len(self.a) - y) / len(y)
        a = self.a.clone()
        self.a -= rate * (wrong @ hidden)
        self.w -= rate * a[:, None] * ((wrong[:, None] * (1 - hidden.square())).T @ x)


def problem(seed: int) -> tuple[Tensor, Tensor]:
    """Return inputs and the outputs of a teacher of four units."""
    generator = torch.Generator().manual_seed(1000 + seed)
    x = torch.randn(SAMPLES, INPUTS, generator=generator, dtype=torch.float64)
    teacher = torch.randn(INPUTS, 4, generator=generator, dtype=torch.float64)
    return x, torch.tanh(x @ teacher).sum(1) / 4


def descend(count: int, seed: int, time: float, step: float) -> Particles:
    """Return the units after gradient descent on all samples for ``time``."""
    x, y = problem(seed)
    units = Particles(count, seed)
    for _ in range(round(time / step)):
        units.step(x, y, RATE * step)
    return units


def sample(count: int, seed: int, time: float) -> Particles:
    """Return the units after SGD: one sample and 1/N of time a step."""
    x, y = problem(seed)
    units = Particles(count, seed)
    generator = torch.Generator().manual_seed(2000 + seed)
    for row in torch.randint(SAMPLES, (round(time * count),), generator=generator).tolist():
        units.step(x[row : row + 1], y[row : row + 1], RATE / count)
    return units


@experiments.register("mean-field")
class MeanField(Experiment):
    """Measures the distance of SGD's outputs from gradient descent's for several widths."""

    lecture = "An overview of empirical studies in NNs (Sagun)"
    claim = "in the many-particle limit the gradient flow converges to global minimizers; GD = SGD"
    source = "Mei et al. 2018; Sirignano, Spiliopoulos 2018; Rotskoff, Vanden-Eijnden 2018"
    minutes = 2.0
    seeds = 6

    def measure(self, scale: Scale) -> Findings:
        """Fit a power of N to the mean squared distance; follow the loss far beyond for flow."""
        widths = scale.pick((32, 64, 128, 256), (32, 64, 128, 256, 512, 1024))
        time, long = scale.pick((6.0, 400.0), (10.0, 4000.0))
        rows, points = [], []
        for seed in scale.seeds:
            (x, _), gaps = problem(seed), []
            for count in widths:
                flow = descend(count, seed, time, 1 / count)(x)
                gaps.append(float((sample(count, seed, time)(x) - flow).square().mean()))
                rows.append({"seed": seed, "N": count, "squared distance": f"{gaps[-1]:.3e}"})
            points.append(gaps)
        mean = [sum(column) / len(column) for column in zip(*points, strict=True)]
        logs = [[math.log(value) for value in each] for each in (widths, mean)]
        slope, _, error, _ = straight_line(*logs)
        fit, close = f"b = {slope:.2f} ± {error:.2f}", abs(slope + 1) < max(0.25, 2 * error)
        apart = _difference()
        curves, ends = [], []
        for count in (widths[0], widths[-1]):
            runs = [_losses(count, seed, long) for seed in scale.seeds]
            ends.append([run[-1] for run in runs])
            at = [k * long / len(runs[0]) for k in range(len(runs[0]))]
            curves.append(over_seeds(f"N = {count}", at, runs))
            rows.append({"N": count, "loss at the end": spread(ends[-1])})
        narrow, wide = ends
        checks = [
            Check("mean squared distance of SGD and GD ~ N^b", "b = -1", fit, close),
            Check("mean step of single samples less that of all", "0", f"{apart:.1e}",
                  apart < 1e-12, True),
            Check("loss at the end, widest over narrowest",
                  "at most 1: N large enough, a global minimum",
                  spread([a / b for a, b in zip(wide, narrow, strict=True)]),
                  agreed(a <= b for a, b in zip(wide, narrow, strict=True))),
        ]  # fmt: skip
        gap = scatter("N", "squared distance", [Series("SGD - GD", widths, mean)], "xy")
        charts = [
            ("SGD against gradient descent", "mean square over outputs and seeds", gap),
            ("Gradient flow", "range over seeds", lines("time", "loss", curves, "y")),
        ]
        return Findings(checks, rows, charts, [f"time {time:g}; the loss is followed to {long:g}"])


def _losses(count: int, seed: int, time: float) -> list[float]:
    """Return the loss of gradient descent, 50 times on its way."""
    x, y = problem(seed)
    units, losses = Particles(count, seed), []
    for _ in range(50):
        losses.append(float((units(x) - y).square().mean() / 2))
        for _ in range(round(2 * time / 50)):
            units.step(x, y, RATE / 2)
    return losses


def _difference() -> float:
    """Return the largest entry of the mean step of single samples less the step of all."""
    x, y = problem(0)
    every = [(x[row : row + 1], y[row : row + 1]) for row in range(SAMPLES)]
    moved = []
    for part in [*every, (x, y)]:
        units = Particles(32, 0)
        units.step(*part, 0.1)
        moved.append(units.w)
    return float((torch.stack(moved[:-1]).mean(0) - moved[-1]).abs().max())
