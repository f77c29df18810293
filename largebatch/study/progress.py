"""Show the progress of a study: the running jobs, and an estimate of the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from largebatch._errors import UserError
from largebatch.record import parse_json
from largebatch.schedule import Duration
from largebatch.schedule.resolve import regime_factor, stretch
from largebatch.study.child import Child
from largebatch.study.job import Place
from largebatch.train.branch import read_parent
from largebatch.train.progress import say

PLAIN_SECONDS = 60.0  # between two words of all jobs where there is no terminal
LIVE_SECONDS = 1.0
TAIL_BYTES = 4096


class Position:
    """The progress of a job, from the last line of its metrics."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.line = _last_train_line(place)
        self.share = self._share()

    def _share(self) -> float:
        """Return the part of its own samples that it has seen, from 0 to 1."""
        samples, epoch = self.line.get("samples"), self.line.get("epoch")
        total = None if not samples or not epoch else total_samples(self._place, samples / epoch)
        if not samples or not total:
            return 0.0
        start = 0
        with suppress(UserError):
            start = int((read_parent(self._place.run) or {}).get("samples", 0))
        return min(max((samples - start) / max(1.0, total - start), 0.0), 1.0)


def total_samples(place: Place, epoch_samples: float) -> float:
    """Return the approximate number of samples in a job's run."""
    config = place.config
    length: Duration = stretch(config.schedule.length, regime_factor(config.schedule, config.batch))
    unit = {"ep": epoch_samples, "st": float(config.batch.size)}.get(length.unit, 1.0)
    return float(length.value) * unit


class Progress:
    """Shows the jobs of a study: a table on a terminal, one line a minute elsewhere.

    Args:
        slots: number of jobs at a time.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._took: list[float] = []  # seconds of the jobs that have ended
        self._live: Any = None
        self._next = time.monotonic() + PLAIN_SECONDS
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(auto_refresh=False, transient=True)
            self._live.start()
            self._next = 0.0

    def say(self, text: str) -> None:
        """Print a line that stays on the terminal above the table."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            say(text)

    def ended(self, seconds: float) -> None:
        """Record the duration of a finished job."""
        self._took.append(seconds)

    def show(self, running: Sequence[Child], done: int, total: int) -> None:
        """Show the running jobs, if an update is due.

        Args:
            done, total: number of jobs done, and of all jobs known so far.
        """
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + (PLAIN_SECONDS if self._live is None else LIVE_SECONDS)
        found = [(child, Position(child.place)) for child in running]
        left = self.left(
            [(child.seconds, position.share) for child, position in found],
            total - done - len(running),
        )
        words = f"[{done}/{total}] {len(running)} running" + (f", about {left} left" * bool(left))
        if self._live is None:
            say(words)
            for child, position in found:
                say(f"  {child.place.job.name}: {position.share:.0%}  {child.last_line()}")
            return
        self._live.update(_table(words, found), refresh=True)

    def left(self, running: Sequence[tuple[float, float]], waiting: int) -> str:
        """Return the time left for all known jobs in words; '' while it cannot be estimated.

        Args:
            running: elapsed seconds and share done of each running job.
            waiting: number of jobs that have not started.
        """
        whole = [seconds / share for seconds, share in running if share > 0.02]
        each = [*self._took, *whole]
        if not each:
            return ""
        mean = sum(each) / len(each)
        rest = sum(
            seconds / share * (1 - share) if share > 0.02 else max(mean - seconds, 0.0)
            for seconds, share in running
        )
        return clock((rest + waiting * mean) / self._slots)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def clock(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _table(words: str, found: Sequence[tuple[Child, Position]]) -> Any:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(words), title_justify="left", box=None, expand=True, padding=(0, 1))
    for name, justify in (("job", "left"), ("", "left"), ("", "right"), ("loss", "right")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("left", justify="right", no_wrap=True)
    for child, position in found:
        share, loss = position.share, position.line.get("loss")
        rest = clock(child.seconds / share * (1 - share)) if share > 0.02 else ""
        table.add_row(
            Text(child.place.job.name),
            ProgressBar(total=1.0, completed=share, width=20),
            f"{share:.0%}",
            f"{loss:.4f}" if isinstance(loss, float) else "",
            rest,
        )
    return table


def _last_train_line(place: Place) -> dict[str, Any]:
    """Return the last line of a step, empty where there is none yet."""
    try:
        with open(place.run.metrics, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return {}
    for line in reversed(lines):
        with suppress(ValueError):
            found = parse_json(line)
            if isinstance(found, dict) and found.get("split") == "train":
                return found
    return {}
