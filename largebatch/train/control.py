"""A batch size that grows with the measured gradient noise scale: ``batch.control=noise``.

The run measures its noise scale, and at the end of each window a rule decides whether the batch
grows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from largebatch._documents import dump_yaml
from largebatch._errors import UserError
from largebatch.optim import has_second_moment
from largebatch.probes import Instrument, Moment, NoiseScale
from largebatch.processes.agreement import agreed
from largebatch.record import RunDirectory, is_number, write_atomically
from largebatch.schedule import Duration, Every, NoiseRule, Phase, Step
from largebatch.schedule.control import CONFIDENCE
from largebatch.train.build import Parts
from largebatch.train.config import Config
from largebatch.train.progress import say

LEAST_WINDOW = "1%"
HEAD = """\
# The batches of this run, as batch.control=noise has chosen them. The same run again, to the bit:
# largebatch train --config config.yaml --config batch_plan.yaml --run.dir NEW
"""
KEYS = {"at", "size", "noise_scale", "second_moment"}


class NoiseControl(Instrument):
    """Extends the batch plan at the end of each window, and writes each decision to a file.

    Every rank decides by rank 0's bounds, which come from sums over all ranks. Decisions are saved
    in checkpoints, so a run can resume on any number of ranks. They are also written to
    ``batch_plan.yaml``, a config whose plan replays the run.

    Args:
        noise: the instrument that measures the noise scale.
        rule: decides the next batch.
    """

    name = "batch_control"

    def __init__(
        self,
        noise: NoiseScale,
        rule: NoiseRule,
        config: Config,
        parts: Parts,
        directory: RunDirectory,
    ) -> None:
        self._noise, self._rule, self._config = noise, rule, config
        self._parts, self._world, self._schedule = parts, parts.world, parts.schedule
        self._file = directory.batch_plan
        self.changes: list[dict[str, Any]] = []

    def due(self, step: Step, number: int) -> bool:
        """Return False: decisions are not measurements."""
        return False

    def measure(self, at: Moment) -> Mapping[str, Tensor]:
        """Not called: this instrument measures nothing."""
        return {}

    def window_ends(self, step: Step) -> bool:
        """Return whether to decide after a step; the same on every rank."""
        return self._rule.due(step) and step.end < self._schedule.total_samples

    def decide(self, step: Step) -> bool:
        """Decide after a step whose figures have been read; return whether the batch changes."""
        found = self._noise.judged(CONFIDENCE)
        bounds = (0.0, math.inf, 0.0) if found is None else (found.low, found.high, found.value)
        low, high, value = agreed(list(bounds), self._world)
        before = self._schedule.plan.phases[-1].size
        size = self._rule.decide(before, low, high)
        if size == before:
            return False
        factors = {}
        if has_second_moment(self._parts.optimizer):
            factors = self._noise.second_moment_factors(before, size)
        change = {
            "at": step.end,
            "size": size,
            "noise_scale": value if math.isfinite(value) and value > 0 else low,
            "second_moment": factors,
        }
        self._enter(agreed(change, self._world))
        self._write()
        if self._world.is_main:
            bound = f"at least {low:,.4g}" if size > before else f"at most {high:,.4g}"
            say(
                f"batch {before:,} -> {size:,} from sample {step.end:,}: noise scale {bound}"
                f" samples in two windows running ({CONFIDENCE:.0%} interval)"
            )
        return True

    def begin(self, samples: int, steps: int) -> str | None:
        """Write the decisions so far to the file."""
        self._write()
        rule = self._rule
        down = f" and down to {rule.smallest:,}" if rule.smallest < self._config.batch.size else ""
        return (
            f"batch.control=noise: every {rule.window:,} samples, up to {rule.largest:,} samples a"
            f" step{down}; decisions in {self._file}"
        )

    def state(self) -> dict[str, Any]:
        """Return the decisions, and the batches that earlier windows asked for."""
        return {"running": self._rule.running, "changes": self.changes}

    def check(self, state: Any) -> None:
        """Require decisions in the order of the run."""
        if not isinstance(state, dict) or not isinstance(state.get("running"), int):
            raise ValueError("no state of batch.control=noise")
        at = 0
        for change in state["changes"]:
            numbers = [change["at"], change["size"], *change["second_moment"].values()]
            if set(change) != KEYS or not all(is_number(each) and each > 0 for each in numbers):
                raise ValueError("a decision that is none")
            if not at < change["at"] < self._schedule.total_samples:
                raise ValueError(f"a decision at sample {change['at']}")
            at = change["at"]

    def load(self, state: Any) -> None:
        """Restore earlier decisions."""
        self._rule.running = state["running"]
        for change in state["changes"]:
            self._enter(change)

    def _enter(self, change: dict[str, Any]) -> None:
        self.changes.append(change)
        last, surge = self._schedule.plan.phases[-1], self._config.optim.scaling == "surge"
        phase = replace(
            last,
            size=change["size"],
            noise_scale=change["noise_scale"] if surge else None,
            second_moment=tuple(change["second_moment"].items()),
        )
        self._schedule.plan.switch(change["at"], phase)

    def _write(self) -> None:
        if not self._world.is_main:
            return
        plan = [_line(phase) for phase in self._schedule.plan.phases]
        tree = {"batch": {"control": "none", "min": None, "plan": plan}}
        write_atomically(self._file, HEAD + dump_yaml(tree))


def _line(phase: Phase) -> dict[str, Any]:
    """Return a phase as config keys hold it, without what is its default."""
    until = None if phase.end is None else str(Duration(phase.end, "sa"))
    found = {
        "until": until,
        "size": phase.size,
        "noise_scale": phase.noise_scale,
        "second_moment": dict(phase.second_moment) or None,
    }
    return {key: value for key, value in found.items() if value is not None}


def build_control(
    config: Config, parts: Parts, directory: RunDirectory
) -> tuple[NoiseScale, NoiseControl]:
    """Return the instrument that measures the run and the control that decides by it.

    Raises:
        UserError: the run cannot be measured, or its batch is not a whole number of ghosts.
    """
    batch, schedule, clock = config.batch, parts.schedule, parts.schedule.clock
    atom = max(parts.feed.atoms.size, 1)
    for key, size in (("size", batch.size), ("min", batch.min)):
        if size is not None and size % atom:
            raise UserError(
                f"batch.{key}={size}: batch.control=noise grows by whole ghosts of {atom} samples;"
                f" take {max(atom, round(size / atom) * atom)}"
            )
    try:
        noise = NoiseScale(
            parts.model,
            parts.optimizer,
            parts.engine,
            parts.world,
            clock,
            schedule,
            directory.path,
            parts.task,
            Every(batch.noise_every, clock),
            batch.noise_source,
            str(batch.noise_half_life),
        )
        noise.require_measurable(schedule.plan.phases[0])
    except UserError as error:
        raise UserError(f"batch.control=noise: {error}") from None
    half_life = batch.noise_half_life.samples(clock)
    window = max(2 * half_life, Duration.parse(LEAST_WINDOW).samples(clock), 1)
    smallest = batch.size if batch.min is None else batch.min
    rule = NoiseRule(schedule.warmup_samples, window, smallest, schedule.largest, atom)
    return noise, NoiseControl(noise, rule, config, parts, directory)
