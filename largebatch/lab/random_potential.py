"""Random walks on a line in a random potential, with exactly known mean times.

The walk hops from i to i + 1 at the rate exp(-(V' - V) / 2). Mean times far beyond any simulation
can be computed. Marinari et al. 1983; Sinai 1982 for the exponent 1/2.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]


def potentials(exponent: float, count: int, length: int, rng: np.random.Generator) -> Floats:
    """Draw fractional Brownian paths (count, length + 1) from 0 (Davies and Harte 1987)."""
    lag = np.arange(length + 1.0)
    power = 2 * exponent
    covariance = (np.abs(lag + 1) ** power + np.abs(lag - 1) ** power) / 2 - lag**power
    spectrum = np.fft.rfft(np.concatenate((covariance, covariance[-2:0:-1]))).clip(min=0)
    shape = (count, len(spectrum))
    noise = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    noise[:, [0, -1]] = noise[:, [0, -1]].real * math.sqrt(2)
    steps = np.fft.irfft(noise * np.sqrt(spectrum * length), axis=1)[:, :length]
    return np.concatenate((np.zeros((count, 1)), np.cumsum(steps, axis=1)), axis=1)


def log_times(potential: Floats) -> Floats:
    """Return ln of the mean time from 0 to each distance 1, 2, ...; walls stand at 0.

    T(d) = sum over j < d, i <= j of exp((V_j + V_(j+1)) / 2 - V_i): (paths, length).
    """
    inside = np.logaddexp.accumulate(-potential[:, :-1], axis=1)
    return np.logaddexp.accumulate((potential[:, :-1] + potential[:, 1:]) / 2 + inside, axis=1)


def walk(potential: Floats, walkers: int, rng: np.random.Generator) -> Floats:
    """Return the times at which walkers reach the end of one potential, hop by hop."""
    up = np.append(np.exp(-(potential[1:] - potential[:-1]) / 2), 0)
    down = np.append(0, np.exp((potential[1:] - potential[:-1]) / 2))
    place, time = np.zeros(walkers, dtype=int), np.zeros(walkers)
    while len(on := np.flatnonzero(place < len(potential) - 1)):
        at = place[on]
        total = up[at] + down[at]
        time[on] += rng.exponential(size=len(on)) / total
        place[on] += np.where(rng.uniform(size=len(on)) * total < up[at], 1, -1)
    return time
