"""Growing batches by a plan made before the run, without measurements."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from largebatch.schedule.plan import BatchPlan, Phase


def late(plan: BatchPlan, at: int, size: int) -> None:
    """Extend a plan of one phase by batches of ``size`` from sample ``at`` on.

    A late switch to a large batch, at about 75% of the run, was better than an early switch and
    than a large batch throughout (Wang et al. 2026, arXiv 2602.14208).
    """
    if plan.total_samples is None or at < plan.total_samples:
        plan.switch(at, replace(plan.phases[-1], size=size))


def seesaw(
    plan: BatchPlan,
    fall: Callable[[int], float],
    start: int,
    largest: int,
    rescaled: Callable[[int], float],
) -> None:
    """Extend a plan of one phase: the batch doubles each time the rate has fallen by half.

    A rate c with batch B takes the same path, in expectation, as a rate c sqrt(m) with batch m B
    (Meterez et al. 2025, "Seesaw"). So the rate is multiplied by sqrt(m). For each doubling of the
    batch it falls by sqrt(2), where the plain curve falls by 2.

    Args:
        fall: ratio of the rate at a sample to the rate at ``start``; must only fall from there.
        start: end of the warm-up, in samples.
        largest: largest batch.
        rescaled: factor that ``optim.scaling`` itself gives the rate for a batch.
    """
    first = plan.phases[-1]
    assert plan.total_samples is not None
    found: dict[int, Phase] = {}
    size = 2 * first.size
    while size <= largest:
        low, high = start, plan.total_samples
        while low < high:  # the first sample at which the rate has fallen that far
            middle = (low + high) // 2
            fallen = fall(middle) <= first.size / size
            low, high = (low, middle) if fallen else (middle + 1, high)
        if low >= plan.total_samples:
            break
        factor = math.sqrt(size / first.size) / rescaled(size)
        # Where a curve drops by more than half at once, the larger batch takes the place.
        found[low] = replace(first, size=size, lr_multiplier=first.lr_multiplier * factor)
        size *= 2
    for at, phase in found.items():
        plan.switch(at, phase)
