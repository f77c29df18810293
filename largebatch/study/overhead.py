"""What a larger batch costs from a checkpoint on: the samples it needs for the same loss.

Branches see the same samples in the same order, so their losses are compared pair by pair, on one
held-out set. What another set would have said is estimated by leaving out each part of this one in
turn (the jackknife of groups: Efron and Tibshirani 1993, section 11.5), the same of all branches.
The overhead of a branch is the samples until it has the loss that the reference has after a window,
over the window, less 1; no tolerance in units of the loss is chosen. At a critical batch in the
sense of Zhang et al. 2024 it is 20%.
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
        samples: (n,) since the checkpoint, rising. losses: (n,) of the held-out set.
        sums, weights: (n, parts) loss sums of parts of that set, and what divides them; None: not
            known apart.
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
        """The nearest losses that never rise."""
        return -isotonic(-self.losses, np.ones_like(self.losses))

    def at(self, samples: float) -> float:
        """Return the loss after so many samples, between evaluations in proportion."""
        return float(np.interp(samples, self.samples, self.falling))

    def reaches(self, loss: float) -> float:
        """Return the samples to a loss; past the end by the slope of the last third.

        ``inf`` if the loss no longer falls there.
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
    """Return the share of samples that a branch needs more; ``inf`` of one that was lost."""
    if branch is None:
        return math.inf
    return branch.reaches(reference.at(window)) / window - 1


def held_out_variance(pairs: Sequence[tuple[Curve | None, Curve]], window: float) -> float | None:
    """Return the variance of the logarithm of what a batch needs that the held-out set brings in.

    Args:
        pairs: of each seed, the branch and its reference; all are judged by the same set.

    Returns:
        None where the parts are not known, or without one of them a branch no longer gets there.
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
        values: of each seed. error: standard error of their mean; None: one seed, or lost.
        held: the part of that error that the choice of the held-out samples has; None: not known.
        bound: above which the mean is with 5% probability; None: one seed.
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
        """Whether it is not inferior at 20%: by its bound, or by itself where there is none."""
        return (self.mean if self.bound is None else self.bound) <= OVERHEAD


def overheads(
    values: Mapping[int, Sequence[float]],
    held: Mapping[int, float | None] = {},
    parts: int = 2,
) -> list[Overhead]:
    """Return the overheads of batches with their bounds, from those of seeds.

    Seeds are few, so the deviation of the logarithm of what is needed is taken for that of all
    batches together whose overhead is no more than :data:`MOST`. Batches of one seed share its
    reference, and err together: they count as half as many degrees of freedom as they would alone.
    Seeds share the held-out set, so its variance is added to that of their mean, with degrees of
    freedom after Satterthwaite.

    Args:
        values: of each seed, by batch. held: `held_out_variance` by batch, of so many parts.
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
        batch: None: above all that were tried.
        low, high: with its 95% interval; None: as for ``batch``, or no interval is known.
    """

    batch: float | None
    low: float | None
    high: float | None

    def text(self) -> str:
        """Return it in words."""
        if self.batch is None:
            return "above the largest batch tried" + (
                "" if self.low is None else f" (95%: above {self.low:,.4g})"
            )
        if self.low is None:
            return f"{self.batch:,.4g}"
        high = "above the largest" if self.high is None else f"{self.high:,.4g}"
        return f"{self.batch:,.4g} [{self.low:,.4g}, {high}]"


def limit_of(own: int, found: Sequence[Overhead], level: float = OVERHEAD) -> Limit:
    """Return where the overhead is ``level``, from the reference's own batch up.

    By overheads that are made never to fall, in proportion between neighbours; the
    interval from overheads drawn anew by their standard errors, all batches by the same draw.

    Args:
        own: the reference's batch, whose overhead is 0.
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
