"""What a person sees while a run goes on: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

PLAIN_SECONDS = 10.0  # distance of plain lines; validation lines are always printed


def say(text: str) -> None:
    """Print a line that a person should see, at once."""
    print(text, flush=True)


class Progress:
    """Shows loss, accuracy, rate, samples per second and time left; silent on all ranks but 0.

    Args:
        total: samples of the run. start: samples seen already.
    """

    def __init__(self, total: int, start: int, shown: bool) -> None:
        self.total = total
        self._shown = shown
        self._bar: Any = None
        self._next = 0.0
        self._begun, self._start = time.monotonic(), start
        if shown and sys.stdout.isatty():
            self._bar = self._open_bar(start)

    def _open_bar(self, start: int) -> Any:
        from rich.progress import (
            BarColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>5.1f}%"),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            refresh_per_second=4,
        )
        bar.start()
        bar.add_task("train", total=self.total, completed=start, status="")
        return bar

    @property
    def due(self) -> bool:
        """Whether :meth:`train` would show something now: spares formatting on the hot path."""
        return self._shown and time.monotonic() >= self._next

    def train(self, record: dict[str, Any]) -> None:
        """Show a training line."""
        status = (
            f"loss {record['loss']:.4f}  top1 {100 * record['top1']:.1f}%  lr {record['lr']:.4g}  "
            f"{record['samples_per_second']:,.0f}/s{_nonfinite(record)}"
        )
        if self._bar is not None:
            self._next = time.monotonic() + 0.25
            self._bar.update(0, completed=record["samples"], status=status)
        else:
            self._next = time.monotonic() + PLAIN_SECONDS
            say(f"epoch {record['epoch']:.2f}  {status}  {self._left(record['samples'])} left")

    def validation(self, record: dict[str, Any]) -> None:
        """Show a validation line; these are never left out."""
        if not self._shown:
            return
        extra = "".join(
            f"  {name} {100 * record[name]:.2f}%"
            for name in ("top5", "ema_top1", "ensemble_top1")
            if name in record
        )
        text = (
            f"epoch {record['epoch']:g}  val top1 {100 * record['top1']:.2f}%  "
            f"loss {record['loss']:.4f}{extra}{_nonfinite(record)}"
        )
        if self._bar is not None:
            self._bar.update(0, completed=record["samples"])
            self._bar.console.print(text)
        else:
            say(text)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _left(self, samples: int) -> str:
        done = samples - self._start
        seconds = (time.monotonic() - self._begun) * (self.total - samples) / max(1, done)
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _nonfinite(record: dict[str, Any]) -> str:
    count = record.get("nonfinite_steps")
    return f"  {count} step{'s' * (count > 1)} not finite" if count else ""
