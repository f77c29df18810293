"""Memory that a model carries from one step to the next, for each stream of data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager

from torch import Tensor


class Carry(ABC):
    """A model's memory of each stream of the data (Dai et al. 2019, "Transformer-XL").

    The task takes the memory of a batch's streams before the forward pass and puts the new memory
    back afterwards. Memory belongs to a stream, not to a rank. The trainer passes rows to the rank
    that continues a stream, and saves all rows in checkpoints, so a run can resume on any number of
    ranks.
    """

    @abstractmethod
    def take(self, streams: Sequence[int]) -> Tensor | None:
        """Return the memory of these streams, one row each; None at the start of all of them."""

    @abstractmethod
    def put(self, streams: Sequence[int], memory: Tensor) -> None:
        """Store ``memory`` for these streams, one row each, without gradients."""

    @abstractmethod
    def frozen(self) -> AbstractContextManager[None]:
        """Return a context with a separate memory, which is discarded at the end."""

    @abstractmethod
    def rows(self) -> dict[int, Tensor]:
        """Return the memory of every stream that this rank knows, all of one shape."""

    @abstractmethod
    def load(self, rows: dict[int, Tensor]) -> None:
        """Replace the whole memory."""
