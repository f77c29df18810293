"""Select steps of a run that are a duration apart."""

from __future__ import annotations

from largebatch.schedule.clock import Clock
from largebatch.schedule.duration import Duration
from largebatch.schedule.plan import Step


class Every:
    """Selects steps a duration apart: every n-th step, or the first step past each stretch."""

    def __init__(self, every: Duration, clock: Clock) -> None:
        self._in_steps = every.unit == "st"
        self._length = max(1, int(every.value) if self._in_steps else every.samples(clock))

    def due(self, step: Step, number: int) -> bool:
        """Return whether the ``number``-th step (from 1) is selected."""
        if self._in_steps:
            return number % self._length == 0
        return step.end // self._length > step.start // self._length
