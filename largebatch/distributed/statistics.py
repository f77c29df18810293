"""Count calls, steps and bytes of each all-reduce algorithm in this process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass


@dataclass
class Count:
    """Counts of one algorithm.

    Attributes:
        calls: messages reduced.
        steps: messages that this rank sent to another one, by the schedule.
        bytes: bytes of these messages, of this rank alone.
    """

    calls: int = 0
    steps: int = 0
    bytes: int = 0


_counts: dict[str, Count] = {}
_lock = threading.Lock()
_counters: dict[str, Callable[[], tuple[int, int]]] = {}


def count_by(algorithm: str, counter: Callable[[], tuple[int, int]]) -> None:
    """Add to the counts of ``algorithm`` the steps and bytes that ``counter`` returns."""
    with _lock:
        _counters[algorithm] = counter


def record(algorithm: str, *, calls: int = 0, steps: int = 0, bytes: int = 0) -> None:
    """Add to the counts of ``algorithm``; may be called from any thread."""
    with _lock:
        count = _counts.setdefault(algorithm, Count())
        count.calls += calls
        count.steps += steps
        count.bytes += bytes


def stats() -> dict[str, dict[str, int]]:
    """Return ``{algorithm: {"calls", "steps", "bytes"}}`` since the process began.

    Steps and bytes of ``torus`` are counted as they are sent. ``flat`` is another library's ring,
    whose numbers come from the ring's formulas: 2 (N-1) steps and 2 (N-1)/N of the message.
    """
    with _lock:
        found = {algorithm: asdict(count) for algorithm, count in sorted(_counts.items())}
        for algorithm, counter in _counters.items():
            if algorithm in found:
                steps, bytes = counter()
                found[algorithm]["steps"] += steps
                found[algorithm]["bytes"] += bytes
    return found
