"""Which steps of a run lie a duration apart."""

from __future__ import annotations

from largebatch.schedule.clock import Clock
from largebatch.schedule.duration import Duration
from largebatch.schedule.plan import Step


class Every:
    """Which steps lie a duration apart: every so many steps, or the first past each stretch."""

    def __init__(self, every: Duration, clock: Clock) -> None:
        self._in_steps = every.unit == "st"
        self._length = max(1, int(every.value) if self._in_steps else every.samples(clock))

    def due(self, step: Step, number: int) -> bool:
        """Whether the step that was the ``number``-th (from 1) is one of them."""
        if self._in_steps:
            return number % self._length == 0
        return step.end // self._length > step.start // self._length
