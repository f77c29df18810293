"""What a learning-rate curve is, and the registry of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from largebatch._registry import Registry
from largebatch.schedule.config import ScheduleConfig

Curve: TypeAlias = Callable[[int, float], float]
"""``curve(samples, peak) -> rate``: the rate after ``samples``, where ``peak`` is its maximum."""


@dataclass(frozen=True)
class Timeline:
    """The times of a run in samples, regime adaptation included: what a curve is built from.

    Args:
        total: length of the run.
        start: end of the warm-up, where the decay of poly, cosine, sgdr and cyclical begins.
        step: one step of the reference batch.
        milestones: those of multistep.
        cycle: the first cycle of sgdr, half a cycle of cyclical.
    """

    total: int
    start: int = 0
    step: int = 1
    milestones: tuple[int, ...] = ()
    cycle: int | None = None


curves: Registry[Callable[[ScheduleConfig, Timeline], Curve]] = Registry("schedule.curve")
