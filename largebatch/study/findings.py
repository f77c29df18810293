"""The results of branches: overheads, and exact values for problems where they are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from largebatch._errors import UserError
from largebatch.study import quadratic
from largebatch.study.branches import HALF_LIVES, PARTS, Branch, Branching, Point, curve_of
from largebatch.study.overhead import (
    MOST,
    WINDOWS,
    Curve,
    Limit,
    Overhead,
    held_out_variance,
    limit_of,
    overhead_of,
    overheads,
)
from largebatch.study.settings import rate_of
from largebatch.study.study import Done


class Findings:
    """Reads the results of a run's finished branches.

    Args:
        seeds: seeds of the branches.
        rates: factors on the rule's rate that each batch was tried at.
    """

    def __init__(self, branching: Branching, seeds: Sequence[int], rates: Sequence[float]) -> None:
        self.branching, self.seeds, self.rates = branching, seeds, rates
        self.config, self.judge = branching.config, branching.judge
        self.size = branching.config.batch.size

    @property
    def key(self) -> str:
        """Name of the figure that branches are judged by."""
        return "ema_loss" if self.judge == "average" else "loss"

    def curve(self, branch: Branch, key: str, done: Done) -> Curve | None:
        """Return a branch's loss curve, None if it was lost (diverged or out of memory)."""
        name = branch.name()
        outcome = done[name]
        if outcome.lost:
            return None
        return curve_of(outcome.directory, branch.point, key)

    def trend(self, point: Point, done: Done) -> float | None:
        """Return the correlation of the run's own loss with samples: -1 for a steady fall.

        The highest value over seeds is returned. None for annealed branches, which have only one
        loss.
        """
        if self.judge == "anneal":
            return None
        found = []
        for seed in self.seeds:
            curve = self.curve(self.branching.reference(point, seed), self.key, done)
            if curve is not None and np.ptp(curve.losses) > 0:
                found.append(float(np.corrcoef(curve.samples, curve.losses)[0, 1]))
        return max(found, default=0.0)

    def seeds_of(self, point: Point, factor: int, rate: float, done: Done) -> Sequence[int]:
        """Return the seeds that a batch needs: only the first if the batch is clearly too large.

        From an overhead of :data:`MOST` on, interpolation treats all overheads alike.
        """
        first = self._value(point, factor, rate, self.seeds[0], self.key, done)
        return self.seeds[:1] if first is not None and first >= MOST else self.seeds

    def values(
        self, point: Point, factor: int, rate: float, key: str, done: Done
    ) -> list[float] | None:
        """Return the overhead of each seed; None if a branch is not done."""
        found = []
        for seed in self.seeds_of(point, factor, rate, done):
            value = self._value(point, factor, rate, seed, key, done)
            if value is None:
                return None
            found.append(value)
        return found

    def _value(
        self, point: Point, factor: int, rate: float, seed: int, key: str, done: Done
    ) -> float | None:
        own, other = self.branching.reference(point, seed), Branch(point, factor, rate, seed)
        if self.judge == "anneal":
            return self._annealed(own, other, done)
        pair = self._pair(own, other, key, done)
        return None if pair is None else overhead_of(*pair, self.branching.window)

    def _pair(
        self, own: Branch, other: Branch, key: str, done: Done
    ) -> tuple[Curve | None, Curve] | None:
        """Return the curves of a branch and of its reference, None where one is not done."""
        if own.name() not in done or other.name() not in done:
            return None
        reference = self.curve(own, key, done)
        if reference is None:
            raise UserError(
                f"{own.name()}: the run's own batch diverges at a constant rate:"
                f" {done[own.name()].lost}"
            )
        return self.curve(other, key, done), reference

    def held(self, point: Point, factor: int, rate: float, key: str, done: Done) -> float | None:
        """Return the variance due to the choice of the held-out samples, if it is known."""
        if self.judge == "anneal":
            return None
        pairs = [
            self._pair(
                self.branching.reference(point, seed), Branch(point, factor, rate, seed), key, done
            )
            for seed in self.seeds_of(point, factor, rate, done)
        ]
        known = [pair for pair in pairs if pair is not None]
        return held_out_variance(known, self.branching.window) if known else None

    def _annealed(self, own: Branch, other: Branch, done: Done) -> float | None:
        """Return the overhead by the last losses of branches of one window and of 1.2."""
        ends = [replace(each, part=part) for each in (own, other) for part in (1 / WINDOWS, 1.0)]
        if any(each.name() not in done for each in ends):
            return None
        outcomes = [done[each.name()] for each in ends]
        if any(outcome.lost for outcome in outcomes):
            return math.inf
        reference, _, short, long = (float((o.summary or {})["loss"]) for o in outcomes)
        if not long < short:
            return math.inf if short > reference else 0.0
        return (WINDOWS - 1) * (short - reference) / (short - long)

    def overheads(
        self, point: Point, factors: Sequence[int], done: Done, key: str | None = None
    ) -> list[Overhead] | None:
        """Return the overheads of the batches that are done, each at its best rate."""
        size, key = self.size, key or self.key
        values: dict[int, list[float]] = {}
        held: dict[int, float | None] = {}
        for factor in factors:
            by_rate = {rate: self.values(point, factor, rate, key, done) for rate in self.rates}
            if any(each is None for each in by_rate.values()):
                continue
            best = min(by_rate, key=lambda rate: sum(by_rate[rate] or ()))
            values[factor * size] = by_rate[best] or []
            held[factor * size] = self.held(point, factor, best, key, done)
        return overheads(values, held, PARTS) if values else None

    def rate(self, point: Point, factor: int, done: Done) -> float:
        """Return the best rate factor of a batch."""
        totals = {
            rate: sum(self.values(point, factor, rate, self.key, done) or [math.inf])
            for rate in self.rates
        }
        best = min(totals, key=lambda rate: totals[rate])
        return self.branching.job(Branch(point, factor, best, self.seeds[0])).config.optim.lr

    def peak_rate(self, point: Point, factor: int, done: Done) -> float:
        """Return the peak rate of a whole run at a batch whose rate here is the branch's best."""
        return self.rate(point, factor, done) / point.rate * rate_of(self.config)

    def exact(self, point: Point, factors: Sequence[int]) -> Limit | None:
        """Return the B20 of the expected losses, if these are known exactly."""
        if self.judge == "anneal" or not quadratic.applies(self.config):
            return None
        size, window = self.size, self.branching.window
        _, moments = quadratic.after(quadratic.Moments(), point.samples, size, self.branching.rate)
        curves = {}
        for factor in (1, *factors):
            config = self.branching.job(Branch(point, factor, 1.0, self.seeds[0])).config
            curves[factor] = quadratic.expected_curve(
                moments[-1],
                config.batch.size,
                config.optim.lr,
                window,
                window / HALF_LIVES,
                self.judge == "average",
            )
        own = curves[1]
        if own is None:
            return None
        values = {k * size: [overhead_of(curves[k], own, window)] for k in factors}
        return limit_of(size, overheads(values))
