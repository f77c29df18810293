"""Memory that goes from one step to the next and belongs to a stream, never to a rank."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager

from torch import Tensor


class Carry(ABC):
    """What a model remembers of each stream of the data (Dai et al. 2019, "Transformer-XL").

    The task takes the memory of a batch's streams before its forward pass and puts it back after
    it. Whoever trains hands rows over to other ranks when those go on with a stream, and keeps all
    of them in checkpoints, so that any number of ranks goes on.
    """

    @abstractmethod
    def take(self, streams: Sequence[int]) -> Tensor | None:
        """Return the memory of these streams, one row each; None at the start of all of them."""

    @abstractmethod
    def put(self, streams: Sequence[int], memory: Tensor) -> None:
        """Remember ``memory``, one row each, without gradients."""

    @abstractmethod
    def frozen(self) -> AbstractContextManager[None]:
        """Return a context in which the memory is one of its own that is thrown away after it."""

    @abstractmethod
    def rows(self) -> dict[int, Tensor]:
        """Return the memory of every stream that this rank knows, all of one shape."""

    @abstractmethod
    def load(self, rows: dict[int, Tensor]) -> None:
        """Replace the whole memory."""
