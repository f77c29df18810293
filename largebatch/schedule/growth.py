"""Batches that grow by a plan made before the run, without a measurement."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from largebatch.schedule.plan import BatchPlan, Phase


def late(plan: BatchPlan, at: int, size: int) -> None:
    """Let a plan of one phase go on with batches of ``size`` from sample ``at``.

    A late switch to a large batch, at about 75% of the run, has beaten an early one and a large
    batch throughout (Wang et al. 2026, arXiv 2602.14208).
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
    """Let a plan of one phase double its batch wherever the rate has fallen by half once more.

    A rate c with the batch B takes the same path, in expectation, as c sqrt(m) with m B (Meterez et
    al. 2025, "Seesaw"): so the rate is times sqrt(m) from there on, and has fallen by sqrt(2) for
    each doubling when the plain curve has fallen by 2.

    Args:
        fall: rate at a sample over that at ``start``, from where it only falls.
        start: end of the warm-up, in samples.
        largest: batch.
        rescaled: what ``optim.scaling`` makes of the rate for a batch by itself, as a factor.
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
