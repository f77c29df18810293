"""The interface of a batch: what code between a data source and a task may know about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, Protocol, TypeVar

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


Own = TypeVar("Own", bound="Rows")


class Rows:
    """What dataclasses of batches share; their tensors and arrays have a row a sample."""

    indices: NDArray[np.int64]
    ghosts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def head(self: Own, ghosts: int) -> Own:
        """Return the samples of the first ``ghosts`` ghost batches, as views."""
        kept = self.ghosts[:ghosts]
        n = sum(kept)
        found: dict[str, Any] = {"ghosts": kept}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, (Tensor, np.ndarray)):
                found[field.name] = value[:n]
            elif hasattr(value, "head"):
                found[field.name] = value.head(n)
        return replace(self, **found)  # type: ignore[type-var]
