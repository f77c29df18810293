"""Isotonic regression: interpolate a quantity that is only known not to fall with the batch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


def isotonic(values: Numbers, weights: Numbers) -> Numbers:
    """Return the nearest non-decreasing values, by weighted least squares.

    The method is pool adjacent violators (Ayer et al. 1955).

    Args:
        values, weights: (n,), in order; weights above 0.
    """
    pools: list[tuple[float, float, int]] = []  # mean, weight, members
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        pools.append((value, weight, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, u, m), (b, v, n) = pools[-2:]
            pools[-2:] = [((a * u + b * v) / (u + v), u + v, m + n)]
    return np.repeat([pool[0] for pool in pools], [pool[2] for pool in pools])


def crossing(batches: Numbers, values: Numbers, level: float) -> float | None:
    """Return the batch from which non-decreasing values are above ``level``.

    Values are interpolated linearly between neighbours, which is exact for a hyperbola. None if the
    last value is not above ``level``; the first batch if the first value already is.
    """
    above = np.flatnonzero(values > level)
    if not len(above):
        return None
    last = int(above[0])
    if last == 0:
        return float(batches[0])
    low, high = batches[last - 1], batches[last]
    share = (level - values[last - 1]) / (values[last] - values[last - 1])
    return float(low + share * (high - low))
