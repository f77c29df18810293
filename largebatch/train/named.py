"""Permanent checkpoints (`checkpoint.at`), each at the first step boundary at or past its time."""

from __future__ import annotations

from collections.abc import Sequence

from largebatch.schedule import Clock, Duration
from largebatch.train.checkpoint import NAMED


def name_of(duration: Duration) -> str:
    """Return the name of a checkpoint's folder in ``checkpoints/`` (``at-10ep``)."""
    return f"{NAMED}{duration}".replace("/", "-over-")  # a third of an epoch has no decimal end


def beyond(duration: Duration, clock: Clock) -> bool:
    """Return whether the run ends before ``duration``."""
    if duration.unit == "st" and clock.plan is not None:  # whose samples end with the run
        return duration.value > clock.plan.total_steps
    return duration.samples(clock) > clock.total


class Named:
    """Tells which durations lie between the last save and a sample.

    Attributes:
        passed: samples up to which all durations have been handled.
    """

    def __init__(self, at: Sequence[Duration], clock: Clock) -> None:
        self.passed = -1  # a run saves what is to be kept at 0, too
        self._places = [(d.samples(clock), name_of(d)) for d in at if not beyond(d, clock)]

    def due(self, samples: int) -> list[str]:
        """Return the names of a checkpoint at ``samples``."""
        return [name for place, name in self._places if self.passed < place <= samples]
