"""Paths through weight space: lines, chains of lines, Bezier curves.

Garipov, Izmailov, Podoprikhin, Vetrov and Wilson 2018, "Loss surfaces, mode connectivity, and fast
ensembling of DNNs" (arXiv:1802.10026), section 3: a path is a combination of a few networks, its
bends. The coefficients depend on the place t in [0, 1]. The first bend is at t = 0, the last at t =
1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import comb
from typing import TypeAlias

import torch
from torch import Tensor

from largebatch.weight_space.weights import Loss, Weights

Coefficients: TypeAlias = Callable[[int, float], list[float]]
"""Returns the coefficients of so many bends at a place; they add up to 1."""


def polychain(bends: int, t: float) -> list[float]:
    """Return the coefficients of a chain of lines from bend to bend; two bends make a line.

    >>> polychain(3, 0.75)
    [0.0, 0.5, 0.5]
    """
    along = t * (bends - 1)
    return [max(0.0, 1.0 - abs(along - k)) for k in range(bends)]


def bezier(bends: int, t: float) -> list[float]:
    """Return the coefficients of a Bezier curve; for three bends (1 - t)^2, 2 t (1 - t), t^2.

    >>> bezier(3, 0.5)
    [0.25, 0.5, 0.25]
    """
    degree = bends - 1
    return [comb(degree, k) * t**k * (1.0 - t) ** (degree - k) for k in range(bends)]


def combine(bends: Sequence[Weights], coefficients: Sequence[float]) -> dict[str, Tensor]:
    """Return the sum of networks by coefficients; a gradient goes to all of them."""
    return {
        name: torch.stack([bend[name] * c for bend, c in zip(bends, coefficients, strict=True)])
        .sum(0)
        for name in bends[0]
    }  # fmt: skip


class WeightPath:
    """A path through given bends.

    Args:
        bends: two or more networks with the same names and shapes.
        coefficients: :func:`polychain` or :func:`bezier`.
    """

    def __init__(self, bends: Sequence[Weights], coefficients: Coefficients = polychain) -> None:
        assert len(bends) >= 2, "a path has two ends"
        self.bends, self.coefficients = list(bends), coefficients

    @torch.no_grad()
    def __call__(self, t: float) -> dict[str, Tensor]:
        """Return the weights at a place: at 0 and 1 those of the ends, to the bit."""
        parts = [
            (bend, c)
            for bend, c in zip(self.bends, self.coefficients(len(self.bends), t), strict=True)
            if c != 0.0
        ]
        if len(parts) == 1:
            return dict(parts[0][0])
        return combine([bend for bend, _ in parts], [c for _, c in parts])


def path_losses(loss: Loss, path: WeightPath, places: Iterable[float]) -> list[float]:
    """Return the loss at places of a path, one after the other."""
    return [loss(path(t)) for t in places]
