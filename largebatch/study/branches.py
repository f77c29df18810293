"""Branches of a run: short runs that start from its checkpoints at another batch size.

This module makes their configs and reads their loss curves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from largebatch._errors import UserError
from largebatch.engine import engines
from largebatch.nn import ties_samples
from largebatch.optim.averages import LEAST
from largebatch.record import RunDirectory, read_metrics
from largebatch.schedule import Duration
from largebatch.study import quadratic
from largebatch.study.job import Job
from largebatch.study.overhead import WINDOWS, Curve, Numbers
from largebatch.study.settings import Rule, at_batch, times, with_seed
from largebatch.train import checkpoint
from largebatch.train.config import Config, EmaConfig, SnapshotConfig
from largebatch.train.prepare import prepare

Judge = Literal["average", "anneal", "raw"]

EVALUATIONS = 16  # of a window
PARTS = 16  # of the held-out set, left out in turn
HALF_LIVES = 8  # of the average, in a window
ANNEALED = 0.2  # of a branch: its last part, over which the rate falls to 0
MEASURED = 64  # steps whose noise scale is measured in a branch of the run's own batch


@dataclass(frozen=True)
class Point:
    """A checkpoint from which branches start.

    Attributes:
        name: the name that the user gave.
        rate: learning rate of the run at this sample.
    """

    name: str
    path: Path
    samples: int
    rate: float

    @property
    def run(self) -> Path:
        """Directory of the run that kept the checkpoint."""
        return self.path.parents[1]


@dataclass(frozen=True)
class Branch:
    """One branch: a checkpoint, a batch and a learning rate.

    Attributes:
        factor: factor on the run's batch.
        rate: factor on the rate that the scaling rule gives.
        part: length of the branch, as a share of :data:`WINDOWS` windows. An annealed branch is
            judged at its end only, so several lengths are needed.
    """

    point: Point
    factor: int
    rate: float
    seed: int
    part: float = 1.0

    def name(self) -> str:
        """Return the name of the branch's job."""
        part = "" if self.part == 1.0 else f"-of-{self.part:.3g}"
        return (
            f"{self.point.name}-batch-{times(self.factor)}-rate-{times(self.rate)}"
            f"-seed-{self.seed}{part}"
        )


class Branching:
    """Makes branches of a run.

    Args:
        config: the run's config.
        window: the stretch after a checkpoint over which branches are compared.
        rule: how the rate follows the batch.

    Attributes:
        total, window: samples in the run, and in a window.
        half_life: half-life of the averaged weights, in samples.
        measurable: whether a branch on one rank with one pass a step can measure its noise scale.

    Raises:
        UserError: the window is longer than the rest of the run, or too short for a step.
    """

    def __init__(self, config: Config, window: Duration, rule: Rule, judge: Judge) -> None:
        self.config, self.rule, self.judge = config, rule, judge
        prepared = prepare(config, torch.device("cpu"))
        self._schedule = prepared.schedule
        self.measurable = (
            not ties_samples(prepared.model)
            and engines.entry(config.distributed.engine).facts.own_gradients
            and config.precision.compute != "fp16"
        )
        self.total = self._schedule.total_samples
        self.window = window.samples(self._schedule.clock)
        if self.window < config.batch.size:
            raise UserError(
                f"--window={window}: {self.window:,} samples, less than a step of"
                f" {config.batch.size}"
            )

        self.half_life = max(1, self.window // HALF_LIVES)

    def require_batch(self, factor: int) -> None:
        """Refuse a batch whose step would leave too little of the averaged weights.

        Raises:
            UserError: the message names the window that the batch needs.
        """
        size = factor * self.config.batch.size
        if size > self.most:
            needed = HALF_LIVES * math.ceil(size / math.log2(1 / LEAST))
            raise UserError(
                f"--batches={times(factor)}: steps of {size:,} samples are too long for the average"
                f" in a window of {self.window:,}, which takes {self.most:,}; take smaller batches,"
                f" or --window={needed}sa"
            )

    @property
    def most(self) -> int:
        """Return the most samples that a branch's step may have."""
        if self.judge == "anneal":
            return self.window
        return int(self.half_life * math.log2(1 / LEAST))

    def rate(self, samples: int) -> float:
        """Return the run's learning rate after ``samples``."""
        return self._schedule.lr(samples)

    def require_place(self, what: str, samples: int) -> None:
        """Refuse to branch off where the schedule leaves no rate to scale.

        Args:
            what: the place in the user's words, which begin the message.

        Raises:
            UserError: the place is before the end of the warm-up, or at the run's end.
        """
        if samples < self._schedule.warmup_samples:
            raise UserError(
                f"{what}: within the warm-up, which ends at {self._schedule.warmup_samples:,}"
                " samples: no rate to scale yet"
            )
        if samples >= self.total or not self._schedule.lr(min(samples, self.total - 1)) > 0:
            raise UserError(f"{what}: the run ends there; branch off earlier")
        if samples + self.window > self.total:
            raise UserError(
                f"{what}: the run ends within a window of {self.window:,} samples from there;"
                " branch off earlier, or take a shorter --window"
            )

    def require_at(self, at: Duration) -> None:
        """Refuse a place of a run that is still to be made, see :meth:`require_place`."""
        self.require_place(f"--at={at}", at.samples(self._schedule.clock))

    def point(self, name: str, path: Path) -> Point:
        """Return a checkpoint as a :class:`Point` to branch off from.

        Raises:
            UserError: see :meth:`require_place`.
        """
        samples = int(checkpoint.position_of(path)["samples"])
        self.require_place(str(path), samples)
        return Point(name, path, samples, self._schedule.lr(samples))

    def reference(self, point: Point, seed: int) -> Branch:
        """Return the branch at the run's own batch, the reference of the other branches."""
        return Branch(point, 1, 1.0, seed, 1.0 if self.judge == "anneal" else 1 / WINDOWS)

    def job(self, branch: Branch) -> Job:
        """Return a branch's job: the run's settings, except those that follow the batch.

        The rate stays constant from the checkpoint on, so that all branches are compared at the
        same place of the schedule. The rate of an annealed branch falls to 0 in a straight line
        over its last fifth.
        """
        config, point = self.config, branch.point
        size = branch.factor * config.batch.size
        length = math.ceil(WINDOWS * self.window * branch.part - 1e-6)
        end = point.samples + length
        every = Duration(max(1, self.window // EVALUATIONS), "sa")
        measured = max(1, length // size // MEASURED)
        noise = self.measurable and branch == self.reference(point, branch.seed)
        # Its rate is that at the checkpoint, whatever the scaling there.
        flat = replace(
            config,
            batch=replace(config.batch, reference=None),
            optim=replace(config.optim, lr=point.rate, scaling="none"),
        )
        config = with_seed(at_batch(flat, size, self.rule, branch.rate), branch.seed)
        schedule = replace(
            config.schedule,
            length=Duration(end, "sa"),
            curve="constant",
            warmup=None,
            milestones=[],
            cycle=None,
            cycle_mult=1.0,
            regime="epochs",
        )
        if self.judge == "anneal":
            start = end - round(ANNEALED * length)
            # Up to the warm-up's end from the rate itself: it is constant until it falls.
            schedule = replace(
                schedule,
                curve="poly",
                power=1.0,
                end=0.0,
                warmup=Duration(start, "sa"),
                warmup_start="reference",
            )
        half_life = Duration(self.half_life, "sa")
        config = replace(
            config,
            run=replace(config.run, dir=None, name=None, target=None, nproc=1),
            schedule=schedule,
            ema=EmaConfig() if self.judge == "anneal" else EmaConfig(half_life),
            snapshot=SnapshotConfig(),
            evaluate=replace(
                config.evaluate,
                every=Duration(end, "sa") if self.judge == "anneal" else every,
                also=[],
                parts=1
                if self.judge == "anneal" or quadratic.judges_by_population(config)
                else PARTS,
            ),
            probes=[{"name": "noise", "every": f"{measured}st"}] if noise else [],
            checkpoint=replace(
                config.checkpoint,
                every=Duration(max(1, self.window // 3), "sa"),
                keep=1,
                at=[],
                resume="auto",
            ),
        )
        return Job(branch.name(), config, point.path, config.run.nproc, may_be_lost=True)


def curve_of(run: Path, point: Point, key: str) -> Curve:
    """Return a branch's losses by samples since its checkpoint.

    Args:
        key: ``loss``, or ``ema_loss`` for averaged weights.

    Raises:
        UserError: the branch has written no losses.
    """
    lines = read_metrics(RunDirectory(run).metrics)
    found = [
        line
        for line in lines
        if line.get("split") == "val" and isinstance(line.get(key), (int, float))
    ]
    if len(found) < 2:
        raise UserError(f"{run}: {len(found)} evaluations with {key}; at least 2 are needed")

    def column(name: str) -> Numbers | None:
        values = [line.get(name) for line in found]
        return None if None in values else np.array(values, dtype=np.float64)

    samples, losses = (np.array([line[each] for line in found]) for each in ("samples", key))
    of_parts, weights = column(f"{key}_of_parts"), column(f"{key[:-4]}weight_of_parts")
    return Curve(samples - float(point.samples), losses.astype(np.float64), of_parts, weights)


def noise_of(run: Path, until: float = math.inf) -> dict[str, Any]:
    """Return the last noise-scale figures that a run has written, by name.

    Args:
        until: samples seen by then.
    """
    lines = read_metrics(RunDirectory(run).metrics)
    for line in reversed(list(lines)):
        found = {
            key: value
            for key, value in line.items()
            if key.startswith("noise_scale") and isinstance(value, (int, float))
        }
        if found and line["samples"] <= until:
            return found
    return {}
