"""What one forward pass is given, as far as anything between a source and a task may know it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class Batch(Protocol):
    """The samples of one forward pass; what is in it is between the source and the task.

    Attributes:
        indices: int64 (n,), the samples: those asked for without the unreadable ones.
        positions: int64 (n,), the position in the epoch's order of each.
        ghosts: sizes of the ghost batches, which add up to n.
    """

    indices: NDArray[np.int64]
    positions: NDArray[np.int64]
    ghosts: tuple[int, ...]

    def __len__(self) -> int:
        """Return the number of samples n."""
        ...

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor of the batch; those that models are given have n rows."""
        ...

    def head(self, ghosts: int) -> Batch:
        """Return the samples of the first ``ghosts`` ghost batches, as views."""
        ...
