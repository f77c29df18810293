"""A thin mirror of the metrics as TensorBoard events."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from largebatch.record.json_text import is_number
from largebatch.record.metrics import SIDE

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

IDENTITY = ("samples", "split", "step", "epoch", "order_hash", "rank", "host", "gpu")


class TensorBoardMirror:
    """Writes scalars ``split/name`` against samples seen.

    An event costs a hundred times a line of metrics.jsonl, so each figure of training is thinned to
    one a second of wall time, by itself: those of few lines, as probes leave them, would else fall
    between. Evaluations are all written. metrics.jsonl stays the exact record.

    Args:
        folder: where the events go.
        resumed_at: samples at which the run goes on, None for its start; TensorBoard hides older
            events past them.
        every_seconds: least time between two events of a figure of training.
    """

    def __init__(
        self, folder: Path, resumed_at: int | None = None, every_seconds: float = 1.0
    ) -> None:
        self.folder = folder
        self.every_seconds = every_seconds
        self._resumed_at = resumed_at or 0
        self._writer: SummaryWriter | None = None
        self._next: dict[str, float] = {}  # when a figure of training is due again
        self._absent = False

    def write(self, values: Mapping[str, Any]) -> None:
        """Mirror the numbers of one line of metrics, but for what is less than a second old."""
        figures = {
            name: value
            for name, value in values.items()
            if name not in IDENTITY and is_number(value)
        }
        split = SIDE.get(values["split"], values["split"])
        if split == "train":
            now = time.monotonic()
            figures = {name: v for name, v in figures.items() if now >= self._next.get(name, now)}
            self._next |= dict.fromkeys(figures, now + self.every_seconds)
        writer = self._open() if figures else None
        if writer is None:
            return
        rank = f"/rank{values['rank']}" if "rank" in values else ""
        for name, value in figures.items():
            writer.add_scalar(f"{split}/{name}{rank}", value, values["samples"])

    def close(self) -> None:
        """Flush what is left."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self) -> SummaryWriter | None:
        """Return the writer, made at the first event: importing TensorBoard takes a second."""
        if self._writer is None and not self._absent:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                warnings.warn(f"no TensorBoard events: {error}", stacklevel=3)
                self._absent = True
                return None
            self._writer = SummaryWriter(str(self.folder), purge_step=self._resumed_at + 1)
        return self._writer
