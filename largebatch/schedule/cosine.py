"""Cosine decay: half a period over the run."""

from __future__ import annotations

import math
from functools import partial

from largebatch.schedule.config import ScheduleConfig
from largebatch.schedule.curve import Curve, CurveFacts, Timeline, curves


def cosine(samples: int, peak: float, start: int, total: int, end: float) -> float:
    """Return ``end + (peak - end) * (1 + cos(pi * progress)) / 2``, over start to total."""
    progress = min(1.0, max(0, samples - start) / max(1, total - start))
    return end + 0.5 * (peak - end) * (1.0 + math.cos(math.pi * progress))


@curves.register(
    "cosine",
    "half a cosine from the end of the warm-up to the end",
    "Loshchilov and Hutter 2017",
    CurveFacts(frozenset({"end"})),
)
def build_cosine(config: ScheduleConfig, timeline: Timeline) -> Curve:
    """Return the cosine decay over the run after its warm-up."""
    return partial(cosine, start=timeline.start, total=timeline.total, end=config.end)
