"""Cosine decay with warm restarts; with equal cycles, the curve of snapshot ensembles."""

from __future__ import annotations

import math
from functools import partial

from largebatch._errors import UserError
from largebatch.schedule.config import ScheduleConfig
from largebatch.schedule.curve import Curve, CurveFacts, Timeline, curves


def cycle_at(samples: int, start: int, cycle: int, cycle_mult: float) -> tuple[int, int]:
    """Return (first sample, length) of the cycle that ``samples`` lies in.

    The first cycle begins at ``start`` and is ``cycle`` long. The i-th is ``cycle * cycle_mult^i``
    long, rounded to samples one after another.
    """
    if cycle_mult == 1.0:
        return start + max(0, samples - start) // cycle * cycle, cycle
    while samples >= start + cycle:
        start += cycle
        cycle = round(cycle * cycle_mult)
    return start, cycle


def sgdr(samples: int, peak: float, start: int, cycle: int, cycle_mult: float, end: float) -> float:
    """Return ``end + (peak - end) * (1 + cos(pi * T_cur / T_i)) / 2`` within the current cycle.

    Restarts lie at T_0, T_0 (1 + T_mult), T_0 (1 + T_mult + T_mult^2), ... after ``start``. With
    ``cycle_mult`` 1, ``end`` 0 and ``cycle`` = ceil(T / M) this is the curve of snapshot ensembles,
    alpha_0 / 2 (cos(pi mod(t, ceil(T / M)) / ceil(T / M)) + 1), t counted from zero.

    Source: Loshchilov and Hutter 2017, equation 5; Huang et al. 2017, equation 2.
    """
    first, length = cycle_at(samples, start, cycle, cycle_mult)
    progress = max(0, samples - first) / length
    return end + 0.5 * (peak - end) * (1.0 + math.cos(math.pi * progress))


def cycle_ends(start: int, total: int, cycle: int, cycle_mult: float) -> list[int]:
    """Return the ends of cycles in samples, up to ``total``; the last cycle ends with the run."""
    ends = []
    end = start + cycle
    while end < total:
        ends.append(end)
        cycle = round(cycle * cycle_mult)
        end += cycle
    return [*ends, total]


@curves.register(
    "sgdr",
    "cosine decay with warm restarts; equal cycles give snapshot ensembles",
    "Loshchilov and Hutter 2017; Huang et al. 2017",
    CurveFacts(frozenset({"cycle", "cycle_mult", "end"}), cycle="whole"),
)
def build_sgdr(config: ScheduleConfig, timeline: Timeline) -> Curve:
    """Return the restarting cosine, whose first cycle begins at the end of the warm-up."""
    if timeline.cycle is None:
        raise UserError("schedule.cycle: schedule.curve=sgdr needs the length of its first cycle")
    return partial(
        sgdr,
        start=timeline.start,
        cycle=timeline.cycle,
        cycle_mult=config.cycle_mult,
        end=config.end,
    )
