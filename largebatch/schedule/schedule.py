"""The learning rate of a run as a function of samples seen."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from largebatch._errors import UserError
from largebatch.schedule.batch_scaling import scale_lr
from largebatch.schedule.clock import Clock
from largebatch.schedule.config import BatchConfig, ScheduleConfig
from largebatch.schedule.curve import Timeline, curves
from largebatch.schedule.duration import Duration
from largebatch.schedule.growth import late, seesaw
from largebatch.schedule.plan import Phase
from largebatch.schedule.resolve import regime_factor, resolve_plan, stretch
from largebatch.schedule.sgdr import cycle_ends


class Schedule:
    """Batch plan, curve, warm-up, scaling and regime of one run, resolved to samples.

    Attributes:
        plan: the batch plan, whose steps the run takes.
        clock: converts the run's other durations to samples.
        total_samples: length of the run.
        warmup_samples: length of the warm-up.
        regime_factor: factor by which regime adaptation has stretched the run.
        cycle_ends: ends of the cycles of sgdr and cyclical, in samples; for other curves the run's
            end.
        largest: samples in the largest possible step.
        reference: the batch at which the rate and related settings are tuned.

    Args:
        schedule: the config section.
        batch: the config section.
        lr: ``optim.lr``, tuned at ``batch.reference``.
        scaling: none, linear, sqrt or surge, see :func:`scale_lr`.
        epoch_samples: training samples in an epoch.
        minimum: the smallest step allowed, as in ``BatchPlan``.
        cycles: ``snapshot.cycles``: number of equal cycles of curve sgdr or cyclical.

    Raises:
        UserError: a key out of range, or keys that contradict one another.
    """

    def __init__(
        self,
        schedule: ScheduleConfig,
        batch: BatchConfig,
        lr: float,
        scaling: str,
        epoch_samples: int,
        minimum: int = 1,
        cycles: int | None = None,
    ) -> None:
        batch.check()
        schedule.check()
        entry = curves.entry(schedule.curve)
        if not 0 <= lr < float("inf"):
            raise UserError(f"optim.lr={lr}: a number from 0 up")
        self._config, self._batch, self._rate, self._rule = schedule, batch, lr, scaling
        self._facts = entry.facts
        self._cycles = cycles
        self.reference = batch.reference or batch.size
        self.regime_factor = regime_factor(schedule, batch)
        self.plan = resolve_plan(schedule, batch, epoch_samples, minimum)
        assert self.plan.total_samples is not None
        self.total_samples = self.plan.total_samples
        self.clock = Clock(epoch_samples, self.total_samples, self.plan)
        self.warmup_samples = self._samples(schedule.warmup) if schedule.warmup else 0
        if self.warmup_samples > self.total_samples:
            raise UserError(
                f"schedule.warmup={schedule.warmup}: {self.warmup_samples} samples, longer than "
                f"the run's {self.total_samples}"
            )
        if batch.control != "none":  # later steps are not counted yet
            self.clock = replace(self.clock, settled=self.warmup_samples)
        timeline = Timeline(
            total=self.total_samples,
            start=self.warmup_samples,
            step=self.reference,
            milestones=tuple(self._samples(milestone) for milestone in schedule.milestones),
            cycle=self._cycle(cycles),
        )
        self._curve = entry.factory(schedule, timeline)
        self.cycle_ends = self._cycle_ends(timeline.cycle)
        self._grow()
        for phase in self.plan.phases:
            self._peak(phase)

    def _grow(self) -> None:
        """Make the plan of ``batch.control``, where that needs no measurement."""
        batch, plan = self._batch, self.plan
        self.largest = max([*(phase.size for phase in plan.phases), batch.max or 0])
        if batch.control == "noise":
            doublings = int(math.log2(self.largest / batch.size))
            self.largest = batch.size << doublings
        elif batch.control == "late":
            assert batch.max is not None
            late(plan, self._samples(batch.late), batch.max)
            self.clock = replace(self.clock, settled=None)
        elif batch.control == "seesaw":
            assert batch.max is not None
            if self._facts.cycle is not None:
                raise UserError(
                    f"batch.control=seesaw: schedule.curve={self._config.curve} climbs again; take"
                    " one that only falls, such as cosine"
                )
            whole = self._peak(plan.phases[0])
            seesaw(
                plan,
                lambda at: self._curve(at, whole) / whole if whole else 1.0,
                self.warmup_samples,
                batch.max,
                lambda size: self._peak(replace(plan.phases[0], size=size)) / whole,
            )
            self.clock = replace(self.clock, settled=None)

    def lr(self, samples: int, batch: int | None = None) -> float:
        """Return the learning rate of the step that starts after ``samples``.

        The rate is scaled to ``batch``. None: the phase's batch, so that the short last step of an
        epoch keeps the phase's rate.
        """
        phase = self.plan.phase_at(samples)
        rate = self._curve(samples, self._peak(phase, batch))
        if samples < self.warmup_samples:
            start = self._warmup_start
            rate = start + (rate - start) * (samples / self.warmup_samples)
        if phase.warmup:
            rate *= min(1.0, (samples - self.plan.start_of(phase)) / phase.warmup)
        return rate * phase.lr_multiplier

    def peak(self, samples: int) -> float:
        """Return the peak rate of the phase at ``samples``."""
        phase = self.plan.phase_at(samples)
        return self._peak(phase) * phase.lr_multiplier

    def describe(self) -> list[str]:
        """Return the values derived from the config and the reasons, one line each."""
        config, total = self._config, self.total_samples
        first_of_size = {phase.size: phase for phase in reversed(self.plan.phases)}
        lines = [self._describe_rate(first_of_size[size]) for size in sorted(first_of_size)]
        if self.regime_factor > 1:
            lines.append(
                f"regime steps: epochs and samples x {self.regime_factor} "
                f"= ceil({self.plan.phases[0].size}/{self.reference})"
            )
        lines.append(f"length {config.length} = {total:,} samples, {self.plan.total_steps:,} steps")
        if self.warmup_samples:
            steps = self.plan.steps_until(self.warmup_samples)
            lines.append(
                f"warm-up {config.warmup} from lr {self._warmup_start:.6g}: "
                f"{self.warmup_samples:,} samples, {steps:,} steps"
            )
        lines.append(f"curve {config.curve}: {curves.entry(config.curve).summary}")
        if len(self.plan.phases) > 1:
            lines += [
                f"phase {index} from sample {start:,}: batch {phase.size}"
                + (f", extent {phase.extent}" if phase.extent else "")
                + (f", lr x {phase.lr_multiplier:g}" if phase.lr_multiplier != 1 else "")
                + (f", warm-up of {phase.warmup:,} samples" if phase.warmup else "")
                for index, (phase, start) in enumerate(self._starts())
            ]
        return [*lines, *self._never()]

    def _never(self) -> Iterator[str]:
        """Say what the config asks for and the run's length leaves out."""
        config, total = self._config, self.total_samples
        end = f"the run ends at {total:,}"
        for milestone in config.milestones:
            if self._samples(milestone) >= total:
                yield f"schedule.milestones: {milestone} never comes: {end} samples"
        if self.warmup_samples == total:
            yield f"schedule.warmup={config.warmup} lasts to the end of the run"
        for index, (_, start) in enumerate(self._starts()):
            if start >= total:
                yield f"batch.plan[{index}] never begins: it would at sample {start:,}, {end}"
        if config.cycle is not None and self._samples(config.cycle) > total - self.warmup_samples:
            what = "restarts" if self._facts.cycle == "whole" else "reaches its peak"
            yield f"schedule.cycle={config.cycle}: the rate never {what}: {end} samples"
        members = len({self.plan.steps_until(at) for at in self.cycle_ends})
        if self._cycles is not None and members < self._cycles:
            yield f"snapshot.cycles={self._cycles}: no more than {members} cycles end with a step"
        if config.end > min(map(self._peak, self.plan.phases)) and "end" in self._facts.takes:
            yield f"schedule.end={config.end:g} lies above the rate: the curve climbs"

    @property
    def _warmup_start(self) -> float:
        return self._rate if self._config.warmup_start == "reference" else 0.0

    def _peak(self, phase: Phase, batch: int | None = None) -> float:
        noise = phase.noise_scale or self._batch.noise_scale
        return scale_lr(self._rate, batch or phase.size, self.reference, self._rule, noise)

    def _samples(self, duration: Duration) -> int:
        return stretch(duration, self.regime_factor).samples(self.clock)

    def _cycle(self, cycles: int | None) -> int | None:
        """Return the first cycle (sgdr) or half a cycle (cyclical) in samples."""
        config = self._config
        if cycles is None:
            if config.cycle is None:
                return None
            cycle = self._samples(config.cycle)
            if cycle < 1:
                raise UserError(f"schedule.cycle={config.cycle}: less than one sample")
            return cycle
        require_cycles(config, cycles)
        if config.cycle is not None or config.cycle_mult != 1.0:
            key = "cycle_mult" if config.cycle is None else "cycle"
            raise UserError(f"snapshot.cycles={cycles}: sets the cycles; leave out schedule.{key}")
        length = self.total_samples - self.warmup_samples
        if not 1 <= cycles <= length:
            raise UserError(f"snapshot.cycles={cycles}: from 1 to {length}")
        return -(-length // (cycles if self._facts.cycle == "whole" else 2 * cycles))

    def _cycle_ends(self, cycle: int | None) -> list[int]:
        if cycle is None:
            return [self.total_samples]
        if self._facts.cycle == "half":
            return cycle_ends(0, self.total_samples, 2 * cycle, 1.0)
        return cycle_ends(self.warmup_samples, self.total_samples, cycle, self._config.cycle_mult)

    def _describe_rate(self, phase: Phase) -> str:
        rate, size, reference = self._peak(phase), phase.size, self.reference
        if self._rule == "none" or size == reference:
            if size != reference:
                return f"lr {rate:.6g} for batch {size}: optim.scaling is none"
            return f"lr {rate:.6g} for batch {size}"
        ratio = f"{size}/{reference}"
        ratio = f"sqrt({ratio})" if self._rule == "sqrt" else ratio
        if self._rule == "surge":
            ratio = f"{rate / self._rate if self._rate else 0:.4g} (surge, {ratio})"
        return f"lr {rate:.6g} = {self._rate:.6g} x {ratio}"

    def _starts(self) -> list[tuple[Phase, int]]:
        starts = [0] + [phase.end or 0 for phase in self.plan.phases[:-1]]
        return list(zip(self.plan.phases, starts, strict=True))


def require_cycles(schedule: ScheduleConfig, cycles: int) -> None:
    """Refuse ``snapshot.cycles`` for a curve without cycles.

    Raises:
        UserError: the message names the curves that have cycles.
    """
    if curves.entry(schedule.curve).facts.cycle is None:
        having = curves.where(lambda facts: facts.cycle is not None)
        raise UserError(
            f"snapshot.cycles={cycles}: needs schedule.curve {having}, not {schedule.curve}"
        )
