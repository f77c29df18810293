"""The checkpoints that stay: `checkpoint.at`, each at the first step boundary at or past it."""

from __future__ import annotations

from collections.abc import Sequence

from largebatch.schedule import Clock, Duration
from largebatch.train.checkpoint import NAMED


def name_of(duration: Duration) -> str:
    """Return the folder's name in ``checkpoints/`` (``at-10ep``)."""
    return f"{NAMED}{duration}".replace("/", "-over-")  # a third of an epoch has no decimal end


def beyond(duration: Duration, clock: Clock) -> bool:
    """Whether the run ends before it."""
    if duration.unit == "st" and clock.plan is not None:  # whose samples end with the run
        return duration.value > clock.plan.total_steps
    return duration.samples(clock) > clock.total


class Named:
    """Which of the durations lie between the last save and a sample.

    Attributes:
        passed: samples up to which they have been seen to.
    """

    def __init__(self, at: Sequence[Duration], clock: Clock) -> None:
        self.passed = -1  # a run saves what is to be kept at 0, too
        self._places = [(d.samples(clock), name_of(d)) for d in at if not beyond(d, clock)]

    def due(self, samples: int) -> list[str]:
        """Return the names that a checkpoint at ``samples`` is to have."""
        return [name for place, name in self._places if self.passed < place <= samples]
