"""Branches off a run's checkpoints: their configs, and the curves that they leave."""

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
    """A checkpoint to branch off from.

    Attributes:
        name: as it was asked for. rate: of the run at that sample.
    """

    name: str
    path: Path
    samples: int
    rate: float


@dataclass(frozen=True)
class Branch:
    """One branch.

    Attributes:
        factor: on the run's batch. rate: factor on the rule's rate. part: of :data:`WINDOWS`
            windows that it runs, which an annealed branch needs to be judged at.
    """

    point: Point
    factor: int
    rate: float
    seed: int
    part: float = 1.0

    def name(self) -> str:
        """Return the name of its job."""
        part = "" if self.part == 1.0 else f"-of-{self.part:.3g}"
        return (
            f"{self.point.name}-batch-{times(self.factor)}-rate-{times(self.rate)}"
            f"-seed-{self.seed}{part}"
        )


class Branching:
    """Makes branches of a run.

    Args:
        config: of the run.
        window: what is compared, from a checkpoint on.
        rule: how the rate follows the batch.

    Attributes:
        total, window: samples of the run, and of a window.
        measurable: whether a branch on one rank, of one pass a step, can tell its noise scale.

    Raises:
        UserError: the window is longer than what is left, or too short for a step.
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

    def rate(self, samples: int) -> float:
        """Return the run's rate after so many samples."""
        return self._schedule.lr(samples)

    def point(self, name: str, path: Path) -> Point:
        """Return a checkpoint as a place to branch off from.

        Raises:
            UserError: it is at the run's end, where the rate is 0, or before the warm-up's.
        """
        samples = int(checkpoint.position_of(path)["samples"])
        if samples < self._schedule.warmup_samples:
            raise UserError(
                f"{path}: within the warm-up, which ends at {self._schedule.warmup_samples:,}"
                " samples: no rate to scale yet"
            )
        rate = self._schedule.lr(min(samples, self.total - 1))
        if samples >= self.total or not rate > 0:
            raise UserError(f"{path}: the run ends there; branch off earlier")
        return Point(name, path, samples, rate)

    def reference(self, point: Point, seed: int) -> Branch:
        """Return the branch of the run's own batch, which is compared at a window's end."""
        return Branch(point, 1, 1.0, seed, 1.0 if self.judge == "anneal" else 1 / WINDOWS)

    def job(self, branch: Branch) -> Job:
        """Return the job of a branch: the run's own settings, but for what follows the batch.

        The rate stays what it is at the checkpoint, so that all branches are compared at the same
        place of the schedule; an annealed one falls to 0 in a straight line over its last fifth.
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
        half_life = Duration(max(1, self.window // HALF_LIVES), "sa")
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
        key: ``loss``, or ``ema_loss`` of averaged weights.

    Raises:
        UserError: it has left none.
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


def noise_of(run: Path) -> dict[str, Any]:
    """Return the last figures of the noise scale that a branch has written, by their names."""
    lines = read_metrics(RunDirectory(run).metrics)
    for line in reversed(list(lines)):
        found = {
            key: value
            for key, value in line.items()
            if key.startswith("noise_scale") and isinstance(value, (int, float))
        }
        if found:
            return found
    return {}
