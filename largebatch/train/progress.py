"""Show the progress of a run: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from largebatch.tasks import LOSS, Task

PLAIN_SECONDS = 10.0  # distance of plain lines; validation lines are always printed


def say(text: str) -> None:
    """Print a line for the user at once."""
    print(text, flush=True)


class Progress:
    """Shows loss, headline figure, rate, samples per second and time left; on rank 0 only.

    Args:
        task: gives the names of figures and their usual form.
        total: samples in the run.
        start: samples seen already.
    """

    def __init__(self, task: Task[Any], total: int, start: int, shown: bool) -> None:
        self.task, self.total = task, total
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
        """Return whether :meth:`train` would show a line now; saves formatting on the hot path."""
        return self._shown and time.monotonic() >= self._next

    def train(self, record: dict[str, Any]) -> None:
        """Show a training line."""
        headline = self.task.headline
        known = headline.name in record and headline.name != LOSS.name
        figure = f"  {headline.text(record[headline.name], 1)}" if known else ""
        status = (
            f"loss {record['loss']:.4f}{figure}  lr {record['lr']:.4g}  "
            f"{record['samples_per_second']:,.0f}/s{_nonfinite(record)}"
        )
        if self._bar is not None:
            self._next = time.monotonic() + 0.25
            self._bar.update(0, completed=record["samples"], status=status)
        else:
            self._next = time.monotonic() + PLAIN_SECONDS
            say(f"epoch {record['epoch']:.2f}  {status}  {self._left(record['samples'])} left")

    def validation(self, record: dict[str, Any]) -> None:
        """Show a validation line; validation lines are never left out."""
        if not self._shown:
            return
        texts = [f"epoch {record['epoch']:g}", *self._figures(record)]
        text = "  ".join(texts) + _nonfinite(record)
        if self._bar is not None:
            self._bar.update(0, completed=record["samples"])
            self._bar.console.print(text)
        else:
            say(text)

    def _figures(self, record: dict[str, Any]) -> Iterator[str]:
        """Yield headline, loss, other figures of the task, and the headline of other weights."""
        headline, figures = self.task.headline, self.task.figures
        if headline.name != LOSS.name and headline.name in record:
            yield f"val {headline.text(record[headline.name])}"
            yield LOSS.text(record["loss"], 4)
        else:
            yield f"val {LOSS.text(record['loss'], 4)}"
        for name in figures:
            if name in record and name != headline.name:
                yield self.task.known(name).text(record[name])
        digits = 4 if headline.name == LOSS.name else 2
        for name in record:
            if name.endswith(f"_{headline.name}") and name not in figures:
                yield replace(headline, name=name).text(record[name], digits)

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
