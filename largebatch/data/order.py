"""The order of the samples: a stateless function of (seed, epoch, position).

No list of indices is stored: position ``p`` of an epoch holds sample ``permutation(p)``. So a run
on any number of ranks, resumed at any sample, reads the same order. The permutation is an
unbalanced Feistel network over a grid a x b >= n with cycle walking (Black and Rogaway 2002,
"Ciphers with arbitrary finite domains", CT-RSA). It takes O(1) memory, and is exact for any n.
"""

from __future__ import annotations

from math import isqrt

import numpy as np
from numpy.typing import NDArray

from largebatch.data.draws import GOLDEN, Stream, key, mix

_BLOCK = 8192
_ROUNDS = 8
_SMALL = 1 << 12
_SMALL_ROUNDS = 32


class Permutation:
    """A keyed permutation of ``range(n)``, evaluated point by point.

    Args:
        n: number of elements, from 1 to 2**62.
        key: 64 bits that choose the permutation.
    """

    def __init__(self, n: int, key: int) -> None:
        assert 1 <= n <= 1 << 62, f"permutation of {n} elements"
        self.n = n
        self.key = key
        # The grid is nearly square and exceeds n by less than one row, so hardly any element
        # needs a second walk through the network.
        self._rows = isqrt(n - 1) + 1
        self._columns = -(-n // self._rows)
        # A round moves an element by one of few offsets when the grid is small, so small grids
        # take more rounds to reach every order with equal chance.
        rounds = _SMALL_ROUNDS if n < _SMALL else _ROUNDS
        self._keys = mix(
            np.arange(1, rounds + 1, dtype=np.uint64) * np.uint64(GOLDEN)
            ^ np.uint64(key & ((1 << 64) - 1))
        )

    def __call__(self, positions: NDArray[np.int64] | int) -> NDArray[np.int64]:
        """Map positions in [0, n) to elements of [0, n): int64 of the same shape."""
        positions = np.asarray(positions, dtype=np.int64)
        image = self._walk(positions.reshape(-1).astype(np.uint64))
        outside = np.flatnonzero(image >= np.uint64(self.n))
        while outside.size:
            image[outside] = self._walk(image[outside])
            outside = outside[image[outside] >= np.uint64(self.n)]
        return image.astype(np.int64).reshape(positions.shape)

    def _walk(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Apply the Feistel network once to values in [0, a * b)."""
        columns = np.uint64(self._columns)
        left = values // columns
        right = values - left * columns
        # Rounds alternate halves: left += F(right) mod rows, then right += F(left) mod columns.
        moved, fixed = left, right
        modulus, other = np.uint64(self._rows), columns
        half = np.uint64(32)
        for round_key in self._keys:
            offset = mix(fixed + round_key)
            offset >>= half
            offset *= modulus
            offset >>= half
            moved += offset
            # The sum is below twice the modulus; below it, the difference wraps to a huge number.
            np.minimum(moved, moved - modulus, out=moved)
            moved, fixed, modulus, other = fixed, moved, other, modulus
        left *= columns
        left += right
        return left


class EpochOrder:
    """The order in which each epoch visits ``n`` samples.

    Args:
        n: number of samples in an epoch.
        seed: the run's seed.
        shuffle: whether each epoch has its own random order (training) or all are sequential
            (evaluation).
    """

    def __init__(self, n: int, seed: int, shuffle: bool = True) -> None:
        assert n >= 1, "an epoch needs samples"
        self.n = n
        self.seed = seed
        self.shuffle = shuffle
        self._cached: tuple[int, int, NDArray[np.int64]] | None = None

    def indices(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Return the samples at positions [start, stop) of an epoch: int64 (stop - start,)."""
        assert 0 <= start <= stop <= self.n, (start, stop, self.n)
        if not self.shuffle:
            return np.arange(start, stop, dtype=np.int64)
        first, last = start // _BLOCK, (stop - 1) // _BLOCK
        if first != last:
            return self._permutation(epoch)(np.arange(start, stop, dtype=np.int64))
        # Small batches read from a block computed at once: numpy's cost per call is spread over it.
        offset = first * _BLOCK
        return self._block(epoch, first)[start - offset : stop - offset].copy()

    def _block(self, epoch: int, number: int) -> NDArray[np.int64]:
        cached = self._cached
        if cached is not None and cached[:2] == (epoch, number):
            return cached[2]
        positions = np.arange(number * _BLOCK, min((number + 1) * _BLOCK, self.n), dtype=np.int64)
        block = self._permutation(epoch)(positions)
        self._cached = (epoch, number, block)
        return block

    def _permutation(self, epoch: int) -> Permutation:
        return Permutation(self.n, key(self.seed, epoch, Stream.ORDER))
