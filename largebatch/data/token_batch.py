"""Windows of text, ready for the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass
class TokenBatch:
    """The windows of one request, see :class:`~largebatch.data.batch.Batch`.

    Attributes:
        tokens: int64 (n, tokens of a window) on the device.
        indices, positions: int64 (n,), of the request.
        ghosts: sizes of the ghost batches, which add up to n.
    """

    tokens: Tensor
    indices: NDArray[np.int64]
    positions: NDArray[np.int64]
    ghosts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def tensors(self) -> Iterator[Tensor]:
        """Yield the tokens."""
        yield self.tokens

    def head(self, ghosts: int) -> TokenBatch:
        """Return the windows of the first ``ghosts`` ghost batches, as views."""
        kept = self.ghosts[:ghosts]
        n = sum(kept)
        return TokenBatch(self.tokens[:n], self.indices[:n], self.positions[:n], kept)
