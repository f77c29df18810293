"""Compare batches and numbers of GPUs by hours, cost and energy to a target.

Steps to a target are S(B) = Smin + Emin / B (the hyperbola, see :mod:`largebatch.study.hyperbola`)
and a step takes t = B / (P r) + c on P GPUs. Here r is the samples a second of a GPU and c the
fixed time of a step. So the time is S t. Its minimum is at B = sqrt(critical batch x c P r), the
geometric mean of the critical batch and of the samples that the GPUs could process in the time c.
The minimum is (sqrt(Emin / (P r)) + sqrt(Smin c))^2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from largebatch.study.need import Need
from largebatch.study.timing import StepTime

DRAWS = 2000
CONFIDENCE = 0.9
PER_DOUBLING = 4  # batches tried

Interval = tuple[float, float]


@dataclass(frozen=True)
class Choice:
    """One batch on one number of GPUs.

    Attributes:
        hours: hours to the target.
        statistics, timing: 90% intervals of the hours, from the errors of the runs and from those
            of the step time.
        both: 90% interval from all errors together, for a run that is still to be made. Like
            ``statistics`` None if the errors of the runs are not known.
        cost: hours x GPUs x price; in GPU-hours without a price.
        kilowatt_hours: energy; None if no watts were given.
        extrapolated: whether the batch lies outside of the measured range, of runs or of step
            times.
        learning_rate: peak rate to train at; None: not known.
    """

    ranks: int
    batch: int
    hours: float
    statistics: Interval | None
    timing: Interval
    both: Interval | None
    cost: float
    kilowatt_hours: float | None
    extrapolated: bool
    learning_rate: float | None = None


@dataclass(frozen=True)
class Chances:
    """Random draws of the unknowns, the same for every choice, so that choices can be compared."""

    samples: NDArray[np.float64]
    steps: NDArray[np.float64]
    scatter: NDArray[np.float64]
    time: NDArray[np.float64]
    known: bool  # whether the errors of the line are

    @staticmethod
    def of(need: Need) -> Chances:
        """Draw a fitted line, a run's scatter about it, and a standard normal error of time.

        Errors that few runs tell are Student's: all of a draw's are wider by the same factor.
        """
        generator = np.random.default_rng(0)
        covariance = np.zeros((2, 2)) if need.covariance is None else need.covariance
        off = generator.multivariate_normal([0.0, 0.0], covariance, DRAWS, method="eigh")
        scatter, time = generator.standard_normal((2, DRAWS))
        wider = np.ones(DRAWS)
        if need.freedom:
            wider = np.sqrt(need.freedom / generator.chisquare(need.freedom, DRAWS))
        return Chances(
            np.maximum(need.samples + wider * off[:, 0], 0.0),
            np.maximum(need.steps + wider * off[:, 1], 0.0),
            np.exp(need.scatter * wider * scatter),
            time,
            need.covariance is not None,
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
        batches: batch sizes. None: four per doubling, from the runs' smallest batch. The last is
            four times the larger of two batches: the runs' largest, and the fastest on the most
            GPUs.
        price: price of a GPU for an hour.
        watts: power of a GPU.
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
        _interval(steps * seconds / 3600) if chances.known else None,
        _interval(hours * slower),
        _interval(steps * chances.scatter * seconds / 3600 * slower) if chances.known else None,
        cost,
        None if watts is None else hours * time.ranks * watts / 1000,
        not (need.measured(batch) and time.measured(batch)),
        need.learning_rate(batch),
    )


def fastest_batch(need: Need, time: StepTime) -> float:
    """Return the batch with the fewest hours on one number of GPUs, in closed form."""
    return math.sqrt(need.critical * time.fixed * time.ranks * time.rate)


def fastest_hours(need: Need, time: StepTime) -> float:
    """Return the fewest hours on one number of GPUs, in closed form."""
    first = math.sqrt(need.samples / (time.ranks * time.rate))
    return (first + math.sqrt(need.steps * time.fixed)) ** 2 / 3600


def front(found: Sequence[Choice]) -> list[Choice]:
    """Return the Pareto front: choices that no other beats in hours and cost, the fastest first."""
    kept: list[Choice] = []
    for choice in sorted(found, key=lambda each: (each.hours, each.cost)):
        if not kept or choice.cost < kept[-1].cost:
            kept.append(choice)
    return kept


def marked(found: Sequence[Choice], within: float) -> dict[str, Choice]:
    """Return the fastest choice, the cheapest, and the fastest of those that cost little more.

    Args:
        within: extra cost allowed for the third choice, as a share of the least cost.
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
