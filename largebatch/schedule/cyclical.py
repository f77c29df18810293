"""Cyclical learning rates: triangles between two bounds."""

from __future__ import annotations

from functools import partial
from typing import Literal

from largebatch._errors import UserError
from largebatch.schedule.config import ScheduleConfig
from largebatch.schedule.curve import Curve, CurveFacts, Timeline, curves

Shape = Literal["triangular", "triangular2", "exp_range"]


def cyclical(
    samples: int,
    peak: float,
    start: int,
    stepsize: int,
    end: float,
    shape: Shape = "triangular",
    gamma: float = 1.0,
) -> float:
    """Return the rate on a triangle wave from ``end`` up to ``peak``, reached at ``stepsize``.

    ``triangular2`` halves the height from cycle to cycle. ``exp_range`` multiplies the height by
    ``gamma`` per cycle, continuously. The paper's factor g per step is gamma = g^(2 * stepsize in
    steps).

    Source: Smith 2015, "Cyclical learning rates for training neural networks".
    """
    since = max(0, samples - start)
    cycles, inside = divmod(since, 2 * stepsize)
    height = 1.0 - abs(inside / stepsize - 1.0)
    if shape == "triangular2":
        height *= 0.5**cycles
    elif shape == "exp_range":
        height *= gamma ** (since / (2 * stepsize))
    return end + (peak - end) * height


@curves.register(
    "cyclical",
    "a triangle wave between schedule.end and the rate",
    "Smith 2015",
    CurveFacts(frozenset({"cycle", "cycle_shape", "gamma", "end"}), cycle="half"),
)
def build_cyclical(config: ScheduleConfig, timeline: Timeline) -> Curve:
    """Return the triangle wave, which begins at its bottom at the end of the warm-up."""
    if timeline.cycle is None:
        raise UserError("schedule.cycle: schedule.curve=cyclical needs its half-cycle")
    if timeline.start:
        raise UserError(
            "schedule.warmup: no warm-up with schedule.curve=cyclical, which begins at its bottom"
        )
    return partial(
        cyclical,
        start=timeline.start,
        stepsize=timeline.cycle,
        end=config.end,
        shape=config.cycle_shape,
        gamma=config.gamma,
    )
