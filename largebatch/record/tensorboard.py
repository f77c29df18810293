"""Mirror the metrics, thinned, as TensorBoard events."""

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

    An event costs a hundred times as much as a line of metrics.jsonl. So each training figure is
    written at most once a second of wall time. This is done separately for each figure, so that
    rare figures, such as those of probes, are not lost. All evaluations are written. metrics.jsonl
    is the exact record.

    Args:
        folder: folder for the events.
        resumed_at: samples at which the run resumes, None at its start; TensorBoard hides older
            events past this point.
        every_seconds: least number of seconds between two events of a training figure.
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
        """Mirror one line of metrics, except figures written less than ``every_seconds`` ago."""
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
        """Flush and close."""
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
