"""Windows of text, ready for the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from largebatch.data.batch import Rows


@dataclass
class TokenBatch(Rows):
    """The windows of one request, see :class:`~largebatch.data.batch.Batch`.

    Attributes:
        tokens: int64 (n, tokens of a window) on the device.
        indices, positions: int64 (n,), of the request.
        ghosts: sizes of the ghost batches, which add up to n.
        counted: bool (n, tokens of a window), tokens that count in a loss, without prompts and
            padding; None: all.
        key: seed and epoch, to which all random draws of a task are keyed.
        streams: int64 (n,), the stream that each window continues; None: there are no streams.
        begins: whether these are the first windows of their streams.
    """

    tokens: Tensor
    indices: NDArray[np.int64]
    positions: NDArray[np.int64]
    ghosts: tuple[int, ...]
    counted: NDArray[np.bool_] | None = None
    key: tuple[int, int] = (0, 0)
    streams: NDArray[np.int64] | None = None
    begins: bool = False

    def tensors(self) -> Iterator[Tensor]:
        """Yield the tokens."""
        yield self.tokens
