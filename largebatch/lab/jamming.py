"""Where a network can just fit its examples: jamming, in the way of Spigler, Geiger et al. 2018.

Each example is a constraint y f(x) >= 1. A network of N parameters that meets all P has loss 0, as
loose grains have no contacts. Below N* about as many stay broken as there are parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise, takewhile
from typing import NamedTuple

import torch
from torch import Tensor

from largebatch.lab.digits import drawn_digits

INPUTS = 10
RATE = 0.03


class Nets:
    """Several networks of one shape side by side: two hidden layers of tanh, one output.

    tanh and not ReLU: in layers of so few units those of ReLU die, and N* blurs.
    """

    def __init__(self, widths: tuple[int, int], count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.layers: list[tuple[Tensor, Tensor]] = []
        for fan, out in pairwise((INPUTS, *widths, 1)):
            weight = torch.randn(count, fan, out, generator=generator) / math.sqrt(fan)
            bias = torch.zeros(count, 1, out)
            self.layers.append((weight.requires_grad_(), bias.requires_grad_()))
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
    sets = drawn_digits(count, seed)
    pixels = sets[0][0].flatten(1)
    _, values, axes = torch.linalg.svd(pixels - pixels.mean(0), full_matrices=False)
    onto = axes[:INPUTS].T / values[:INPUTS] * math.sqrt(count)
    centred = ((x.flatten(1) - pixels.mean(0), y) for x, y in sets)
    train, held = (Data(x @ onto, 1.0 - 2 * (y % 2)) for x, y in centred)
    return train, held


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
    rows: list[Scanned] = []
    for shape in shapes[::-1] if downwards else shapes:
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
    fitting = list(takewhile(lambda each: each.fits, reversed(scanned)))
    return fitting[-1].size if fitting else None
