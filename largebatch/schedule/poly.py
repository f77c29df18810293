"""Polynomial decay, in the form of MLPerf's ResNet-50."""

from __future__ import annotations

from functools import partial

from largebatch.schedule.config import ScheduleConfig
from largebatch.schedule.curve import Curve, CurveFacts, Timeline, curves


def poly(
    samples: int, peak: float, start: int, total: int, step: int, end: float, power: float
) -> float:
    """Return ``end + (peak - end) * (1 - (samples - start) / (total - start + step))^power``.

    With ``step`` the batch this is MLPerf's form: the decay lasts one step longer than the run, so
    that the last step still moves the weights. Here ``step`` is the reference batch, so changing
    the batch alone does not move the curve.

    Source: You et al. 2017 (power 2); mlcommons/training, ResNet ``lars_util.py``.
    """
    progress = max(0, samples - start) / (total - start + step)
    return end + (peak - end) * max(0.0, 1.0 - progress) ** power


@curves.register(
    "poly",
    "polynomial decay from the end of the warm-up",
    "You et al. 2017; MLPerf ResNet-50",
    CurveFacts(frozenset({"power", "end"})),
)
def build_poly(config: ScheduleConfig, timeline: Timeline) -> Curve:
    """Return the polynomial decay over the run after its warm-up."""
    return partial(
        poly,
        start=timeline.start,
        total=timeline.total,
        step=timeline.step,
        end=config.end,
        power=config.power,
    )
