"""Which batch on how many GPUs: hours, cost and energy to the target, and what is worth choosing.

Steps to a target are S(B) = Smin + Emin / B (the hyperbola, see :mod:`largebatch.study.hyperbola`)
and a step takes t = B / (P r) + c on P GPUs, so that the hours are S t. They are least at
B = sqrt(critical batch x c P r), the geometric mean of the critical batch and of the samples that
the GPUs lose to what is fixed in a step, and are (sqrt(Emin / (P r)) + sqrt(Smin c))^2 there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from largebatch.study.timing import StepTime

DRAWS = 2000
CONFIDENCE = 0.9
PER_DOUBLING = 4  # batches tried

Interval = tuple[float, float]


@dataclass(frozen=True)
class Need:
    """Samples to the target against batch, with their errors.

    Attributes:
        samples, steps: Emin and Smin, in samples and steps.
        covariance: of both, (2, 2).
        scatter: relative standard deviation of one run about the line.
        least, most: the smallest and largest batch of the runs it stands on.
    """

    samples: float
    steps: float
    covariance: NDArray[np.float64]
    scatter: float
    least: float
    most: float

    @property
    def critical(self) -> float:
        """The critical batch."""
        return self.samples / self.steps

    def measured(self, batch: float) -> bool:
        """Whether the batch lies between those of the runs."""
        return self.least <= batch <= self.most


@dataclass(frozen=True)
class Choice:
    """One batch on one number of GPUs.

    Attributes:
        hours: to the target; statistics, timing: its 90% intervals by the runs' errors and by the
            step's; both: by all together, for a run that is still to be made.
        cost: hours x GPUs x price, in GPU-hours without a price. kilowatt_hours: None: no watts.
        extrapolated: whether the batch lies outside what was measured, in runs or in time.
    """

    ranks: int
    batch: int
    hours: float
    statistics: Interval
    timing: Interval
    both: Interval
    cost: float
    kilowatt_hours: float | None
    extrapolated: bool


@dataclass(frozen=True)
class Chances:
    """Draws of what is not known, the same for every choice, so that choices can be compared."""

    samples: NDArray[np.float64]
    steps: NDArray[np.float64]
    scatter: NDArray[np.float64]
    time: NDArray[np.float64] = field(repr=False)

    @staticmethod
    def of(need: Need) -> Chances:
        """Draw a line, the scatter of a run about it, and a standard normal error of time."""
        generator = np.random.default_rng(0)
        lines = generator.multivariate_normal(
            [need.samples, need.steps], need.covariance, DRAWS, method="eigh"
        )
        scatter, time = generator.standard_normal((2, DRAWS))
        return Chances(
            np.maximum(lines[:, 0], 0.0),
            np.maximum(lines[:, 1], 0.0),
            np.exp(need.scatter * scatter),
            time,
        )


def choices(
    need: Need,
    times: Sequence[StepTime],
    batches: Sequence[int] = (),
    price: float | None = None,
    watts: float | None = None,
) -> list[Choice]:
    """Return every batch on every number of GPUs.

    Args:
        batches: None: four to a doubling, from the runs' smallest to four times the larger of
            their largest and the fastest on most GPUs.
        price: of a GPU an hour. watts: that a GPU draws.
    """
    chances = Chances.of(need)
    fastest = max(fastest_batch(need, time) for time in times)
    tried = batches or _doublings(need.least, 4 * max(need.most, fastest))
    return [
        choice_of(need, time, batch, chances, price, watts)
        for time in times
        for batch in dict.fromkeys(max(1, round(b / time.ranks)) * time.ranks for b in tried)
    ]


def choice_of(
    need: Need,
    time: StepTime,
    batch: int,
    chances: Chances,
    price: float | None = None,
    watts: float | None = None,
) -> Choice:
    """Return one choice with its intervals."""
    seconds = time.seconds(batch)
    hours = (need.steps + need.samples / batch) * seconds / 3600
    steps = chances.steps + chances.samples / batch
    slower = np.exp(time.error * chances.time)
    cost = hours * time.ranks * (1.0 if price is None else price)
    return Choice(
        time.ranks,
        batch,
        hours,
        _interval(steps * seconds / 3600),
        _interval(hours * slower),
        _interval(steps * chances.scatter * seconds / 3600 * slower),
        cost,
        None if watts is None else hours * time.ranks * watts / 1000,
        not (need.measured(batch) and time.measured(batch)),
    )


def fastest_batch(need: Need, time: StepTime) -> float:
    """Return the batch with the fewest hours on one number of GPUs, in closed form."""
    return math.sqrt(need.critical * time.fixed * time.ranks * time.rate)


def fastest_hours(need: Need, time: StepTime) -> float:
    """Return the fewest hours on one number of GPUs, in closed form."""
    first = math.sqrt(need.samples / (time.ranks * time.rate))
    return (first + math.sqrt(need.steps * time.fixed)) ** 2 / 3600


def front(found: Sequence[Choice]) -> list[Choice]:
    """Return the choices that no other betters in hours and in cost, the fastest first."""
    kept: list[Choice] = []
    for choice in sorted(found, key=lambda each: (each.hours, each.cost)):
        if not kept or choice.cost < kept[-1].cost:
            kept.append(choice)
    return kept


def marked(found: Sequence[Choice], within: float) -> dict[str, Choice]:
    """Return the fastest, the cheapest, and the fastest of those that cost little more.

    Args:
        within: share of the least cost that the last may cost more.
    """
    cheapest = min(found, key=lambda each: (each.cost, each.hours))
    near = [each for each in found if each.cost <= (1 + within) * cheapest.cost]
    return {
        "fastest": min(found, key=lambda each: (each.hours, each.cost)),
        "cheapest": cheapest,
        f"fastest within {within:.0%} of the cheapest": min(
            near, key=lambda each: (each.hours, each.cost)
        ),
    }


def _doublings(least: float, most: float) -> list[int]:
    count = math.ceil(PER_DOUBLING * math.log2(max(most / least, 2.0)))
    return sorted({round(least * 2 ** (n / PER_DOUBLING)) for n in range(count + 1)} - {0})


def _interval(draws: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
