"""Where a network can just fit its examples: jamming, in the way of Spigler, Geiger et al. 2018.

Each example is a constraint y f(x) >= 1. A network of N parameters that meets all of P has loss 0,
as loose grains have no contacts; below N* some stay broken, about as many as there are parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from largebatch.lab.experiment import Check, Experiment, Findings, Scale, experiments, spread
from largebatch.lab.perceptrons import digits
from largebatch.lab.pictures import Series, lines, scatter
from largebatch.report.log_fit import straight_line

INPUTS = 10
RATE = 0.03


class Nets:
    """Several networks of one shape side by side: two hidden layers of tanh, one output.

    tanh and not ReLU: in layers of so few units those of ReLU die, and N* blurs.
    """

    def __init__(self, widths: tuple[int, int], count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        sizes = [INPUTS, *widths, 1]
        self.layers: list[tuple[Tensor, Tensor]] = []
        for fan, out in pairwise(sizes):
            weight = torch.randn(count, fan, out, generator=generator) / math.sqrt(fan)
            self.layers.append(
                (weight.requires_grad_(), torch.zeros(count, 1, out).requires_grad_())
            )
        self.parameters = [tensor for layer in self.layers for tensor in layer]
        self.size = sum(tensor[0].numel() for tensor in self.parameters)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the outputs (count, n) at the inputs (n, 10)."""
        *hidden, (weight, bias) = self.layers
        for w, b in hidden:
            x = torch.tanh(x @ w + b)
        return (x @ weight + bias)[..., 0]


class Data(NamedTuple):
    """Inputs (n, 10) and labels -1 or 1."""

    x: Tensor
    y: Tensor


def random_data(count: int, seed: int) -> Data:
    """Draw inputs on a sphere and coins for labels: nothing but memory fits these."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, INPUTS, generator=generator)
    y = torch.randint(2, (count,), generator=generator) * 2.0 - 1
    return Data(x / x.norm(dim=1, keepdim=True) * math.sqrt(INPUTS), y)


def parity_data(count: int, seed: int) -> tuple[Data, Data]:
    """Return digits to train with and held out, even or odd, by their ten principal components."""
    x, y, x_test, y_test = digits(count, seed)
    mean = x.mean(0)
    _, values, axes = torch.linalg.svd(x - mean, full_matrices=False)
    scale = values[:INPUTS] / math.sqrt(count)
    train, test = ((part - mean) @ axes[:INPUTS].T / scale for part in (x, x_test))
    return Data(train, 1.0 - 2 * (y % 2)), Data(test, 1.0 - 2 * (y_test % 2))


def hinge(margins: Tensor) -> Tensor:
    """Return half the square of what each margin lacks of 1."""
    return (1 - margins).clamp(min=0).square() / 2


def train(
    nets: Nets, data: Data, steps: int, loss: Callable[[Tensor], Tensor] = hinge
) -> tuple[Tensor, Tensor]:
    """Descend with all examples (Adam, rate to 0 as a cosine), until all constraints are met.

    Returns:
        margins (count, n) and the mean losses (count,).
    """
    optimizer = torch.optim.Adam(nets.parameters, RATE, (0.9, 0.99), fused=True)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * step / steps)) / 2 + 1e-4
        margins = data.y * nets(data.x)
        losses = loss(margins).mean(1)
        if not losses.detach().any():
            break
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
    with torch.no_grad():
        margins = data.y * nets(data.x)
        return margins, loss(margins).mean(1)


class Scanned(NamedTuple):
    """What networks of one shape came to.

    Attributes:
        size: N. broken: (count,) constraints that stayed broken. losses: (count,).
        outputs: (count, n) at the held-out inputs, if there are any.
    """

    size: int
    broken: Tensor
    losses: Tensor
    outputs: Tensor

    @property
    def fits(self) -> bool:
        """Whether half of the networks meet all constraints, or more."""
        return bool((self.broken == 0).float().mean() >= 0.5)


def scan(
    shapes: Sequence[tuple[int, int]],
    data: Data,
    count: int,
    steps: int,
    seed: int,
    held_out: Data | None = None,
    loss: Callable[[Tensor], Tensor] = hinge,
    downwards: bool = False,
) -> list[Scanned]:
    """Train ``count`` networks of each shape on the same data; return them in order of N.

    Args:
        downwards: begin with the largest, and end after two shapes in a row that do not fit.
    """
    shapes = shapes[::-1] if downwards else shapes
    rows: list[Scanned] = []
    for shape in shapes:
        nets = Nets(shape, count, seed)
        margins, losses = train(nets, data, steps, loss)
        with torch.no_grad():
            outputs = nets((held_out or data).x)
        rows.append(Scanned(nets.size, (margins < 1).sum(1), losses, outputs))
        if downwards and len(rows) > 1 and not any(each.fits for each in rows[-2:]):
            break
    return rows[::-1] if downwards else rows


def threshold(scanned: Sequence[Scanned]) -> int | None:
    """Return N*: the least N that fits, and all larger ones with it."""
    found = None
    for each in reversed(scanned):
        if not each.fits:
            break
        found = each.size
    return found


@experiments.register("jam-N*")
class Jamming(Experiment):
    """Scans N for several P: two kinds of shapes, so that N goes in steps of some ten."""

    lecture = "An overview of empirical studies in NNs (Sagun)"
    claim = "N*: critical number of parameters that fits D_train"
    source = "Spigler, Geiger et al. 2018, arXiv:1810.09665, section 3; Geiger et al. 2018"
    minutes = 3.0

    def measure(self, scale: Scale) -> Findings:
        """Look for N* of random labels; then for that of the logistic loss at one P."""
        counts = scale.pick((64, 128, 256), (64, 128, 256, 512))
        steps, nets, between = scale.pick((700, 3, (0,)), (3000, 4, (0, 1)))
        rows, curves, points = [], [], []
        zero = True
        for seed in scale.seeds:
            for count in counts:
                shapes, data = _shapes(count, between), random_data(count, seed)
                scanned = scan(shapes, data, nets, steps, seed, downwards=True)
                zero &= all(bool(((s.losses == 0) == (s.broken == 0)).all()) for s in scanned)
                critical = threshold(scanned)
                below = [s for s in scanned if critical is None or s.size < critical]
                jump = float(below[-1].broken.max()) / below[-1].size if below else math.nan
                row = {"P": count, "seed": seed, "N*": critical, "broken / N just below": jump}
                rows.append(row)
                if critical is not None:
                    points.append((count, critical))
                if seed == scale.seeds[0]:
                    sizes = [s.size / count for s in scanned]
                    shares = [float(s.broken.float().mean()) / s.size for s in scanned]
                    curves.append(Series(f"P = {count}", sizes, shares, mode="lines+markers"))
        logs = [[math.log(value) for value in each] for each in zip(*points, strict=True)]
        exponent, _, error, _ = straight_line(*logs)
        per, offset, _, r2 = straight_line(*zip(*points, strict=True))
        data = random_data(counts[0], scale.seeds[0])
        soft = scan(_shapes(counts[0], between), data, nets, steps, 0, loss=_logistic)
        checks = [
            Check(
                "N* ~ P^a",
                "a = 1: N* linear in P",
                f"a = {exponent:.2f} ± {error:.2f}; N* = {offset:.0f} + {per:.2f} P, R² {r2:.3f}",
                0.75 < exponent < 1.25 and r2 > 0.95,
            ),
            Check(
                "constraints broken just below N*, of N",
                "a jump from 0, of order 1",
                spread([row["broken / N just below"] for row in rows]),
                None
                if len(points) < len(rows)
                else all(row["broken / N just below"] > 0.05 for row in rows),
            ),
            Check(
                "loss 0 where no constraint is broken, and only there",
                "always",
                str(zero),
                zero,
                True,
            ),
            Check(
                f"least logistic loss over all N, P = {counts[0]}",
                "above 0: it jams nowhere",
                f"{min(float(s.losses.min()) for s in soft):.2g}",
                all(bool((s.losses > 0).all()) for s in soft),
                True,
            ),
        ]
        found = [Series("N*", *zip(*points, strict=True))]
        charts = [
            ("N* against P", "each seed's; dashed: a power", scatter("P", "N*", found, "xy")),
            (
                "Broken constraints",
                "mean over networks, of N, first seed",
                lines("N / P", "broken / N", curves),
            ),
        ]
        return Findings(checks, rows, charts, [f"{nets} networks a shape, {steps} steps at most"])


def _shapes(count: int, between: Sequence[int]) -> list[tuple[int, int]]:
    """Return shapes with N about P/2, in order of N; the second layer is wider by ``between``."""
    every = [(h, h + more) for h in range(1, 40) for more in between]
    sizes = {shape: Nets(shape, 1, 0).size for shape in every}
    return [shape for shape in every if 0.3 * count < sizes[shape] < 1.1 * count]


def _logistic(margins: Tensor) -> Tensor:
    return torch.nn.functional.softplus(-margins)
