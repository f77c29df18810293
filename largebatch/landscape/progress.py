"""Show the progress of the points: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from largebatch.train.progress import PLAIN_SECONDS, say


class Progress:
    """Shows the picture, its last loss and the time left; on rank 0 only.

    Args:
        total: number of evaluations of all pictures.
        done: number of evaluations that were only read.
    """

    def __init__(self, total: int, done: int, shown: bool) -> None:
        self._total, self._done, self._start = total, done, done
        self._begun, self._next = time.monotonic(), 0.0
        self._shown, self._bar = shown, None
        if shown and sys.stdout.isatty():
            self._bar = _open_bar(total, done)

    def add(self, picture: str, cost: int, figures: Mapping[str, Any]) -> None:
        """Record a measured point."""
        self._done += cost
        status = f"{picture}  loss {figures['loss']:.4f}"
        if self._bar is not None:
            self._bar.update(0, completed=self._done, status=status)
        elif self._shown and time.monotonic() >= self._next:
            self._next = time.monotonic() + PLAIN_SECONDS
            say(f"{self._done:,} of {self._total:,} evaluations  {status}  {self._left()} left")

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _left(self) -> str:
        each = (time.monotonic() - self._begun) / max(1, self._done - self._start)
        minutes, seconds = divmod(round(each * (self._total - self._done)), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def _open_bar(total: int, done: int) -> Any:
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        TextColumn("landscape"),
        BarColumn(),
        TextColumn("{task.percentage:>5.1f}%"),
        TextColumn("{task.fields[status]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        refresh_per_second=4,
    )
    bar.start()
    bar.add_task("points", total=total, completed=done, status="")
    return bar
