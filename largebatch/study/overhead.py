"""The overhead of a larger batch from a checkpoint on: the extra samples for the same loss.

A reference branch keeps the run's batch. The overhead of a branch is the number of samples it takes
to the loss that the reference has after a window, over the window, minus 1. So no tolerance in
units of the loss has to be chosen. At a critical batch in the sense of Zhang et al. 2024 the
overhead is 20%.

Branches see the same samples in the same order, so their losses are compared pair by pair, on one
held-out set. The effect of the choice of this set is estimated by leaving out each part of the set
in turn, the same for all branches (the grouped jackknife: Efron and Tibshirani 1993, section 11.5).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from largebatch.study.hyperbola import OVERHEAD
from largebatch.study.isotonic import crossing, isotonic

WINDOWS = 1.2  # that a branch runs: as long as one with an overhead of 20% needs
MOST = 1.0  # an overhead that interpolation takes for all above it, and for what is lost
DRAWS = 1000
CONFIDENCE = 0.95

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Losses of a branch.

    Attributes:
        samples: (n,) samples since the checkpoint, rising.
        losses: (n,) losses on the held-out set.
        sums, weights: (n, parts) sums of the loss over parts of the held-out set, and their
            weights; None: not known by part.
    """

    samples: Numbers
    losses: Numbers
    sums: Numbers | None = None
    weights: Numbers | None = None

    def without(self, part: int) -> Curve:
        """Return the losses of the held-out set without one of its parts."""
        assert self.sums is not None
        assert self.weights is not None
        left = np.arange(self.sums.shape[1]) != part
        return Curve(self.samples, self.sums[:, left].sum(1) / self.weights[:, left].sum(1))

    @property
    def falling(self) -> Numbers:
        """The nearest non-increasing losses."""
        return -isotonic(-self.losses, np.ones_like(self.losses))

    def at(self, samples: float) -> float:
        """Return the loss after ``samples``, interpolated linearly between evaluations."""
        return float(np.interp(samples, self.samples, self.falling))

    def reaches(self, loss: float) -> float:
        """Return the samples to a loss; past the end, extrapolate by the slope of the last third.

        The result is ``inf`` if the loss no longer falls in the last third.
        """
        falling = self.falling
        there = np.flatnonzero(falling <= loss)
        if len(there):
            first = int(there[0])
            if first == 0:
                return float(self.samples[0])
            high, low = falling[first - 1], falling[first]
            share = (high - loss) / (high - low)
            return float(
                self.samples[first - 1] + share * (self.samples[first] - self.samples[first - 1])
            )
        late = min((2 * len(falling) - 1) // 3, len(falling) - 2)
        slope = (falling[-1] - falling[late]) / (self.samples[-1] - self.samples[late])
        if not slope < 0:
            return math.inf
        return float(self.samples[-1] + (loss - falling[-1]) / slope)


def overhead_of(branch: Curve | None, reference: Curve, window: float) -> float:
    """Return the extra samples of a branch as a share of the window; ``inf`` if it was lost."""
    if branch is None:
        return math.inf
    return branch.reaches(reference.at(window)) / window - 1


def held_out_variance(pairs: Sequence[tuple[Curve | None, Curve]], window: float) -> float | None:
    """Return the variance, due to the held-out set, of the logarithm of the samples needed.

    Args:
        pairs: for each seed, the branch and its reference; all are judged by the same held-out set.

    Returns:
        The variance; None if the parts are not known, or if a branch no longer reaches the loss
        without one of them.
    """
    parts = {
        0 if curve is None or curve.sums is None else curve.sums.shape[1]
        for pair in pairs
        for curve in pair
    }
    if len(parts) != 1 or (count := parts.pop()) < 2:
        return None
    left = []
    for part in range(count):
        values = [
            overhead_of(branch.without(part), reference.without(part), window)
            for branch, reference in pairs
            if branch is not None
        ]
        mean = fmean(values)
        if not -1 < mean < math.inf:
            return None
        left.append(math.log1p(mean))
    return (count - 1) * float(np.var(left))


@dataclass(frozen=True)
class Overhead:
    """The overhead of one batch over seeds.

    Attributes:
        values: overhead of each seed.
        error: standard error of the mean of ``values``; None: one seed, or a lost branch.
        held: the part of ``error`` due to the choice of the held-out samples; None: not known.
        bound: value that the mean exceeds with 5% probability; None: one seed.
        freedom: degrees of freedom of the error.
    """

    batch: int
    values: tuple[float, ...]
    error: float | None
    bound: float | None
    freedom: float = 1.0
    held: float | None = None

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return fmean(self.values)

    @property
    def passes(self) -> bool:
        """Whether the overhead is at most 20%, by its bound (by its mean if there is none)."""
        return (self.mean if self.bound is None else self.bound) <= OVERHEAD


def overheads(
    values: Mapping[int, Sequence[float]],
    held: Mapping[int, float | None] = {},
    parts: int = 2,
) -> list[Overhead]:
    """Return the overheads of batches with their bounds, from the overheads of single seeds.

    Seeds are few. So one standard deviation of the logarithm of the samples needed is estimated
    from all batches whose overhead is at most :data:`MOST`. Batches of one seed share a reference,
    so their errors are correlated: they count half the degrees of freedom. Seeds share the held-out
    set, so its variance is added to the variance of their mean, with degrees of freedom by
    Satterthwaite.

    Args:
        values: overheads of the seeds, by batch.
        held: `held_out_variance` by batch.
        parts: number of parts of the held-out set.
    """
    logs = [
        np.log1p(each)
        for each in values.values()
        if len(each) > 1 and -1 < min(each) <= max(each) <= MOST
    ]
    freedom = sum(len(each) - 1 for each in logs)
    if not freedom:
        return [
            Overhead(batch, tuple(each), None, None if max(each) < math.inf else math.inf)
            for batch, each in sorted(values.items())
        ]
    variance = sum((len(each) - 1) * float(np.var(each, ddof=1)) for each in logs) / freedom
    effective = max(1.0, freedom / 2)
    found = []
    for batch, each in sorted(values.items()):
        mean, shared = fmean(each), held.get(batch)
        if math.isinf(mean):
            found.append(Overhead(batch, tuple(each), None, math.inf))
            continue
        own, other = variance / len(each), shared or 0.0
        total = own + other
        many = total**2 / (own**2 / effective + other**2 / (parts - 1)) if total else effective
        error = (1 + mean) * math.sqrt(total)
        bound = mean + float(stdtrit(many, 0.95)) * error
        of_set = None if shared is None else (1 + mean) * math.sqrt(shared)
        found.append(Overhead(batch, tuple(each), error, bound, many, of_set))
    return found


@dataclass(frozen=True)
class Limit:
    """The batch with an overhead of 20%.

    Attributes:
        batch: the batch; None: above all batches tried.
        low, high: 95% interval of ``batch``; None: above all batches tried, or no interval is
            known.
    """

    batch: float | None
    low: float | None
    high: float | None

    def text(self) -> str:
        """Return the limit in words."""
        if self.batch is None:
            return "above the largest batch tried" + (
                "" if self.low is None else f" (95%: above {self.low:,.4g})"
            )
        if self.low is None:
            return f"{self.batch:,.4g}"
        high = "above the largest" if self.high is None else f"{self.high:,.4g}"
        return f"{self.batch:,.4g} [{self.low:,.4g}, {high}]"


def limit_of(own: int, found: Sequence[Overhead], level: float = OVERHEAD) -> Limit:
    """Return the batch at which the overhead is ``level``, from the reference's batch up.

    The overheads are first made non-decreasing, then interpolated linearly between neighbours. The
    interval comes from overheads redrawn by their standard errors, with the same draw for all
    batches.

    Args:
        own: batch of the reference, whose overhead is 0.
    """
    batches = np.array([own, *(each.batch for each in found)], dtype=np.float64)
    means = np.array([0.0, *(min(each.mean, MOST) for each in found)])

    def at(values: Numbers) -> float | None:
        rising = isotonic(np.clip(values, -MOST, MOST), np.ones_like(values))
        return crossing(batches, rising, level)

    batch = at(means)
    if all(each.error is None for each in found):
        return Limit(batch, None, None)
    # Of one that was lost nothing is drawn: it is far above. The others move together.
    spread = np.array([0.0, *(each.error or 0.0 for each in found)])
    freedom = max(each.freedom for each in found)
    drawn_by = np.random.default_rng(0).standard_t(freedom, (DRAWS, 1))
    draws = means + spread * drawn_by
    drawn = sorted(math.inf if (each := at(draw)) is None else each for draw in draws)
    low, high = (drawn[int(q * (DRAWS - 1))] for q in ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return Limit(batch, low if low < math.inf else None, high if high < math.inf else None)
