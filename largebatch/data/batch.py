"""The interface of a batch: what code between a data source and a task may know about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class Batch(Protocol):
    """The samples of one forward pass; only the source and the task know the contents.

    Attributes:
        indices: int64 (n,), indices of the samples, without unreadable ones.
        positions: int64 (n,), position of each sample in the epoch's order.
        ghosts: sizes of the ghost batches, which add up to n.
    """

    indices: NDArray[np.int64]
    positions: NDArray[np.int64]
    ghosts: tuple[int, ...]

    def __len__(self) -> int:
        """Return the number of samples n."""
        ...

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor of the batch; tensors that models get have n rows."""
        ...

    def head(self, ghosts: int) -> Batch:
        """Return the samples of the first ``ghosts`` ghost batches, as views."""
        ...
