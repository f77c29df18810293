"""Functions of one variable with many minima, and methods to find the lowest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

AT = np.linspace(-6, 6, 1201)
"""Where the functions are looked at."""


class Rugged:
    """A parabola with random ripples in one dimension, smoothed in closed form.

    A sum of a cos(k x + p) under a Gaussian of standard deviation s becomes the same with a
    exp(-k^2 s^2 / 2), a parabola itself plus a constant.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.k = rng.uniform(1, 12, 12)
        self.a, self.p = rng.normal(0, 1, 12) / self.k**0.5, rng.uniform(0, 2 * np.pi, 12)
        self.centre = rng.uniform(-2, 2)

    def __call__(self, x: NDArray[np.float64], width: float = 0.0) -> NDArray[np.float64]:
        fading = self.a * np.exp(-((self.k * width) ** 2) / 2)
        waves = np.cos(np.multiply.outer(x, self.k) + self.p) @ fading
        found: NDArray[np.float64] = 0.15 * ((x - self.centre) ** 2 + width**2) + waves
        return found


def minima(values: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the places of local minima inside a row of values."""
    inner = values[1:-1]
    return np.flatnonzero((inner < values[:-2]) & (inner < values[2:])) + 1


def rolled(values: NDArray[np.float64], place: int) -> int:
    """Return the local minimum reached by descent from a place."""
    while True:
        near = [p for p in (place - 1, place, place + 1) if 0 <= p < len(values)]
        lowest = min(near, key=lambda p: values[p])
        if lowest == place:
            return place
        place = lowest


def tracked(loss: Rugged, widths: Sequence[float]) -> int:
    """Return the minimum found by following it from the widest Gaussian smoothing to none."""
    place = int(loss(AT, widths[0]).argmin())
    for width in widths[1:]:
        place = rolled(loss(AT, width), place)
    return rolled(loss(AT), place)
