"""The plain memory of streams: one row per stream, on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from largebatch.tasks.carry import Carry


class StreamRows(Carry):
    """Keeps the last row that was put for every stream."""

    def __init__(self) -> None:
        self._rows: dict[int, Tensor] = {}

    def take(self, streams: Sequence[int]) -> Tensor | None:
        """Return the rows of these streams, stacked; None at the start of all of them.

        Raises:
            ValueError: some of them have begun and others have not.
        """
        known = [stream in self._rows for stream in streams]
        if not any(known):
            return None
        if not all(known):
            raise ValueError("some streams have a memory and others have none: they begin together")
        return torch.stack([self._rows[stream] for stream in streams])

    def put(self, streams: Sequence[int], memory: Tensor) -> None:
        """Store one row of ``memory`` for each stream, without gradients."""
        self._rows.update(zip(streams, memory.detach().unbind(), strict=True))

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Start a ``with`` block with fresh streams, whose memory is discarded at the end."""
        held, self._rows = self._rows, {}
        try:
            yield
        finally:
            self._rows = held

    def rows(self) -> dict[int, Tensor]:
        """Return the row of every stream that has begun."""
        return dict(self._rows)

    def load(self, rows: dict[int, Tensor]) -> None:
        """Replace all rows."""
        self._rows = dict(rows)
