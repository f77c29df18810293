"""The batch plan: the samples of each optimizer step, in closed form."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from largebatch._errors import UserError


@dataclass(frozen=True)
class Phase:
    """A stretch of the run with one batch size.

    Args:
        size: samples in a step over all ranks.
        end: sample at which the next phase begins; None: the end of the run.
        micro: samples per rank and forward, ``auto``, or None for the rank's whole share.
        extent: size of a training sample: pixels of an image's side, or tokens of a window; None:
            set by the data.
        lr_multiplier: factor on the learning rate.
        noise_scale: noise scale in samples for ``optim.scaling=surge``; None:
            ``batch.noise_scale``.
        second_moment: factors on the optimizer's second moment at the phase's first step, by
            parameter name; ``*`` for parameters that are not named.
        warmup: samples from the phase's start over which the rate climbs from zero.
    """

    size: int
    end: int | None = None
    micro: int | Literal["auto"] | None = None
    extent: int | None = None
    lr_multiplier: float = 1.0
    noise_scale: float | None = None
    second_moment: tuple[tuple[str, float], ...] = ()
    warmup: int = 0


@dataclass(frozen=True)
class Step:
    """One optimizer step: ``size`` samples of ``epoch`` from ``position`` in it.

    Args:
        start: samples seen before the step.
        size: samples of the step over all ranks.
        epoch: number of the epoch, from zero.
        position: place of the first sample in the epoch's order.
        phase: the phase of the plan that the first sample lies in.
    """

    start: int
    size: int
    epoch: int
    position: int
    phase: Phase

    @property
    def end(self) -> int:
        """Samples seen after the step."""
        return self.start + self.size


@dataclass(frozen=True)
class _Segment:
    """The steps of one phase: where the first one starts and how many steps came before it."""

    phase: Phase
    sample: int
    step: int


class BatchPlan:
    """The steps of a run as a pure function of samples seen.

    A step takes its phase's batch, but never crosses the end of an epoch or of the run. If fewer
    than ``minimum`` samples would remain there, the step takes them too. A step belongs to the
    phase of its first sample and is not cut at the phase's end.

    Args:
        phases: in order; only the last may have no ``end``.
        epoch_samples: training samples in an epoch.
        minimum: the smallest step allowed (2 if batch norms need two values per channel).
        total_samples: length of the run; None: without end.

    Raises:
        UserError: phases are not in order or end before the run; or a batch, the data set or the
            run's part of the last epoch is smaller than ``minimum``.
    """

    def __init__(
        self,
        phases: Sequence[Phase],
        epoch_samples: int,
        minimum: int = 1,
        total_samples: int | None = None,
    ) -> None:
        assert phases
        assert minimum >= 1
        self.epoch_samples = epoch_samples
        self.minimum = minimum
        self.total_samples = total_samples
        self._place(phases)

    def switch(self, at: int, phase: Phase) -> None:
        """End the last phase at sample ``at`` of the run; ``phase`` follows to the end.

        Steps that start before ``at`` do not change.

        Raises:
            UserError: ``at`` is not past the start of the last phase.
        """
        assert self.phases[-1].end is None
        self._place([*self.phases[:-1], replace(self.phases[-1], end=at), phase])

    def _place(self, phases: Sequence[Phase]) -> None:
        before = getattr(self, "phases", None)
        self.phases = tuple(phases)
        try:
            self._check()
        except UserError:
            if before is not None:
                self.phases = before
            raise
        self._ends = [phase.end for phase in self.phases[:-1] if phase.end is not None]
        self._segments = self._follow()
        self._samples = [segment.sample for segment in self._segments]
        self._steps = [segment.step for segment in self._segments]

    @property
    def total_steps(self) -> int:
        """Number of optimizer steps of the whole run, which must have an end."""
        assert self.total_samples is not None
        return self.steps_until(self.total_samples)

    def phase_at(self, samples: int) -> Phase:
        """Return the phase of a step that starts after ``samples``."""
        return self.phases[bisect_right(self._ends, samples)]

    def start_of(self, phase: Phase) -> int:
        """Return the sample at which the first step of a phase starts."""
        return next(segment.sample for segment in self._segments if segment.phase is phase)

    def step_at(self, samples: int) -> Step:
        """Return the step that starts after ``samples``, which must be before the run's end."""
        assert samples >= 0
        assert self.total_samples is None or samples < self.total_samples
        phase = self.phase_at(samples)
        epoch, position = divmod(samples, self.epoch_samples)
        room = self._room(samples)
        size = phase.size if room - phase.size >= self.minimum else room
        return Step(samples, size, epoch, position, phase)

    def step_before(self, samples: int) -> Step:
        """Return the step that ends at ``samples``, which must be above 0."""
        step = self.step_at(self.samples_after(self.steps_until(samples) - 1))
        return replace(step, size=samples - step.start)

    def steps(self, samples: int = 0) -> Iterator[Step]:
        """Yield the steps from ``samples`` to the end of the run."""
        while self.total_samples is None or samples < self.total_samples:
            step = self.step_at(samples)
            yield step
            samples = step.end

    def samples_after(self, steps: int) -> int:
        """Return the samples seen after ``steps`` steps, at most the length of the run."""
        assert steps >= 0
        segment = self._segments[bisect_right(self._steps, steps) - 1]
        return self._advance(segment.sample, segment.phase.size, steps - segment.step)

    def steps_until(self, samples: int) -> int:
        """Return the smallest number of steps after which ``samples`` have been seen."""
        if self.total_samples is not None:
            samples = min(samples, self.total_samples)
        if samples <= 0:
            return 0
        segment = self._segments[bisect_left(self._samples, samples) - 1]
        return segment.step + self._count(segment.sample, segment.phase.size, samples)

    def _follow(self) -> list[_Segment]:
        """Place each phase after the last step of the one before."""
        segments = [_Segment(self.phases[0], 0, 0)]
        for before, phase in zip(self.phases, self.phases[1:], strict=False):
            assert before.end is not None
            last = segments[-1]
            end = before.end if self.total_samples is None else min(before.end, self.total_samples)
            steps = self._count(last.sample, before.size, end)
            sample = self._advance(last.sample, before.size, steps)
            segments.append(_Segment(phase, sample, last.step + steps))
        return segments

    def _room(self, samples: int) -> int:
        """Return what is left of the epoch, or of the run where that ends first."""
        room = self.epoch_samples - samples % self.epoch_samples
        return room if self.total_samples is None else min(room, self.total_samples - samples)

    def _fill(self, room: int, size: int) -> int:
        """Return in how many steps of ``size`` a room is taken, a small leftover being joined."""
        whole, leftover = divmod(room, size)
        return max(1, whole + (leftover >= self.minimum)) if room else 0

    def _advance(self, samples: int, size: int, steps: int) -> int:
        """Return the samples seen ``steps`` steps of ``size`` after ``samples``."""
        first_room = self._room(samples)
        first = self._fill(first_room, size)
        if steps < first:
            return samples + steps * size
        samples, steps = samples + first_room, steps - first
        epochs = steps // self._fill(self.epoch_samples, size)
        if self.total_samples is not None:
            epochs = min(epochs, (self.total_samples - samples) // self.epoch_samples)
        samples += epochs * self.epoch_samples
        steps -= epochs * self._fill(self.epoch_samples, size)
        room = self._room(samples)
        return samples + (steps * size if steps < self._fill(room, size) else room)

    def _count(self, samples: int, size: int, target: int) -> int:
        """Return how many steps of ``size`` from ``samples`` reach ``target``."""
        if target <= samples:
            return 0
        room = self._room(samples)
        if target <= samples + room:
            return min(-(-(target - samples) // size), self._fill(room, size))
        steps = self._fill(room, size)
        samples += room
        epochs = (target - samples) // self.epoch_samples
        steps += epochs * self._fill(self.epoch_samples, size)
        samples += epochs * self.epoch_samples
        return steps + min(-(-(target - samples) // size), self._fill(self._room(samples), size))

    def _check(self) -> None:
        minimum, total = self.minimum, self.total_samples
        if self.epoch_samples < minimum:
            raise UserError(f"a training set of {self.epoch_samples} samples: at least {minimum}")
        if total is not None and 0 < total % self.epoch_samples < minimum:
            raise UserError(
                f"schedule.length: {total} samples leave {total % self.epoch_samples} in the last "
                f"epoch of {self.epoch_samples}; a step with this norm takes at least {minimum}"
            )
        before = 0
        for index, phase in enumerate(self.phases):
            key = f"batch.plan[{index}]"
            if phase.size < minimum:
                where = f"{key}.size" if len(self.phases) > 1 else "batch.size"
                raise UserError(f"{where}={phase.size}: at least {minimum} with this norm")
            if phase.end is not None:
                if phase.end <= before:
                    raise UserError(
                        f"{key}.until: sample {phase.end}, not after the start of its phase, "
                        f"sample {before}"
                    )
                before = phase.end
        last = self.phases[-1].end
        if last is not None and total is not None and last < total:
            raise UserError(
                f"batch.plan[{len(self.phases) - 1}].until: ends at sample {last}, before the run "
                f"at {total}; leave `until` out of the last phase"
            )
