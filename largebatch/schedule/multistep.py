"""Step decay: the rate falls by a factor at milestones."""

from __future__ import annotations

from bisect import bisect_right
from functools import partial

from largebatch._errors import UserError
from largebatch.schedule.config import ScheduleConfig
from largebatch.schedule.curve import Curve, CurveFacts, Timeline, curves


def multistep(samples: int, peak: float, milestones: tuple[int, ...], gamma: float) -> float:
    """Return ``peak * gamma^(milestones passed)``; a milestone is passed from its own sample on."""
    return peak * gamma ** bisect_right(milestones, samples)


@curves.register(
    "multistep",
    "multiplied by gamma at each milestone",
    "He et al. 2016; Goyal et al. 2017",
    CurveFacts(frozenset({"milestones", "gamma"})),
)
def build_multistep(config: ScheduleConfig, timeline: Timeline) -> Curve:
    """Return the step decay with its milestones counted from the start of the run."""
    if not timeline.milestones:
        raise UserError("schedule.milestones=[]: schedule.curve=multistep needs at least one")
    reached = [milestone for milestone in timeline.milestones if milestone < timeline.total]
    if list(timeline.milestones) != sorted(timeline.milestones) or len(set(reached)) < len(reached):
        given = ", ".join(map(str, config.milestones))
        raise UserError(f"schedule.milestones=[{given}]: each later than the one before")
    return partial(multistep, milestones=timeline.milestones, gamma=config.gamma)
