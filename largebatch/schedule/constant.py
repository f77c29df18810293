"""A constant learning rate."""

from __future__ import annotations

from largebatch.schedule.config import ScheduleConfig
from largebatch.schedule.curve import Curve, CurveFacts, Timeline, curves


def constant(samples: int, peak: float) -> float:
    """Return ``peak``."""
    return peak


@curves.register("constant", "the same rate from the warm-up on", facts=CurveFacts())
def build_constant(config: ScheduleConfig, timeline: Timeline) -> Curve:
    """Return the constant curve."""
    return constant
