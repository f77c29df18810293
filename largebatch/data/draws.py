"""Stateless random draws: every number is a hash of its place of use, not of earlier draws.

A draw is a function of (seed, epoch, sample index, stream, number). So any number of workers and
ranks, and any split into batches, sees the same random numbers. The hash is the finaliser of
SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", OOPSLA,
with David Stafford's variant 13 of the constants), which passes BigCrush as a counter-based
generator.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


class Stream(IntEnum):
    """The purpose of a draw; different streams of one sample are independent."""

    ORDER = 0
    CROP = 1
    FLIP = 2
    MIX = 3
    SAMPLE = 4
    SPLIT = 5
    PIXELS = 6
    LIMIT = 7
    SHIFT = 8
    CHOICE = 9
    REPLACEMENT = 10
    FEATURES = 11
    VIEWS = 12


def mix_int(value: int) -> int:
    """Hash one integer to 64 bits (the scalar twin of `mix`)."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * _FIRST) & _MASK
    value = ((value ^ (value >> 27)) * _SECOND) & _MASK
    return value ^ (value >> 31)


def key(*words: int) -> int:
    """Hash a tuple of integers to one 64-bit key; the order of the words matters."""
    state = 0
    for word in words:
        state = mix_int((state + GOLDEN) ^ mix_int(word + GOLDEN))
    return state


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash 64-bit integers element by element, in place; returns ``values``."""
    scratch = values >> np.uint64(30)
    values ^= scratch
    values *= np.uint64(_FIRST)
    np.right_shift(values, np.uint64(27), out=scratch)
    values ^= scratch
    values *= np.uint64(_SECOND)
    np.right_shift(values, np.uint64(31), out=scratch)
    values ^= scratch
    return values


def uniform(
    seed: int, epoch: int, indices: NDArray[np.int64], stream: int, count: int = 1
) -> NDArray[np.float64]:
    """Draw uniform numbers in [0, 1), keyed to the sample.

    Args:
        seed: the run's seed.
        epoch: the epoch the samples are used in.
        indices: sample indices (or positions), (n,).
        stream: purpose of the numbers, see `Stream`.
        count: how many numbers each sample needs.

    Returns:
        float64 of shape (n, count) with 53 random bits each.
    """
    base = np.uint64(key(seed, epoch, stream))
    state = mix(np.asarray(indices, dtype=np.int64).astype(np.uint64) ^ base)
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    bits = mix(state[:, None] + steps[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


class SampleDraws:
    """The random numbers of one sample and stream in turn: row ``index`` of `uniform`."""

    def __init__(self, seed: int, epoch: int, index: int, stream: int) -> None:
        self._state = mix_int(index ^ key(seed, epoch, stream))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Return the next number, in [low, high)."""
        self._state = (self._state + GOLDEN) & _MASK
        return low + (high - low) * ((mix_int(self._state) >> 11) * 2.0**-53)

    def integer(self, high: int) -> int:
        """Return the next number as an integer in [0, high)."""
        return int(self.uniform() * high)


def integers(
    seed: int, epoch: int, indices: NDArray[np.int64], stream: int, high: int, count: int = 1
) -> NDArray[np.int64]:
    """Draw integers in [0, high), keyed to the sample: int64 of shape (n, count)."""
    return (uniform(seed, epoch, indices, stream, count) * high).astype(np.int64)
