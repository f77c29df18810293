"""One run from its first sample to its summary; it can stop after any step and go on later."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from largebatch._errors import RunFailure, UserError
from largebatch.distributed.sharding import is_sharded
from largebatch.nn import merged_running_stats
from largebatch.optim import set_step
from largebatch.processes.heartbeat import Heartbeat
from largebatch.processes.lifetime import StopRequest
from largebatch.record import RunDirectory
from largebatch.schedule import Step
from largebatch.train import checkpoint
from largebatch.train.averages import WeightAverage, swapped_in
from largebatch.train.build import Parts
from largebatch.train.checksum import require_same_parameters
from largebatch.train.config import Config
from largebatch.train.feed import Share
from largebatch.train.hardware import HardwareSampler, HostReader, Reader, StepReader, gpu_reader
from largebatch.train.layers import LayerRecord
from largebatch.train.micro import halved, is_out_of_memory
from largebatch.train.named import Named
from largebatch.train.nonfinite import NonFinite
from largebatch.train.progress import Progress, say
from largebatch.train.snapshot import SnapshotEnsemble
from largebatch.train.state import RunState
from largebatch.train.step_times import Marks
from largebatch.train.telemetry import Every, Telemetry, WeightDistance, Writers


@dataclass
class Position:
    """How far the run is.

    Attributes:
        samples, steps: seen and taken.
        evaluated: samples at the last validation.
        seconds: of all sessions of the run together.
        last: the last validation line.
        nonfinite: counts of what was not finite, see :class:`NonFinite`.
    """

    samples: int = 0
    steps: int = 0
    evaluated: int = 0
    seconds: float = 0.0
    last: dict[str, Any] | None = None
    reached: dict[str, Any] | None = None
    nonfinite: dict[str, int] = field(default_factory=dict)


@dataclass
class Taken:
    """A step whose sums may still be on their way from the device."""

    step: Step
    number: int
    lr: float
    order_hash: str
    sums: Tensor
    own_sums: Tensor | None
    clip_factor: Tensor | None
    found_inf: Tensor | None
    weights: dict[str, float]
    layers: tuple[list[str], Tensor] | None
    marks: Marks
    at: float


class Trainer:
    """Trains what :func:`~largebatch.train.build.build` made.

    Args:
        directory: where results go; only rank 0 writes.
        stop: set by a signal; the ranks agree on the step after which they stop.
        heartbeat: of this rank; it carries the readings of its hardware to rank 0.
    """

    def __init__(
        self,
        config: Config,
        parts: Parts,
        directory: RunDirectory,
        stop: StopRequest,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        self.heartbeat = heartbeat or Heartbeat(parts.world)
        parts.stepper.times.activity = self.heartbeat.activity
        self.config, self.parts, self.directory, self.stop = config, parts, directory, stop
        self.world, self.schedule = parts.world, parts.schedule
        self.clock = parts.schedule.clock
        self.position = Position()
        self.average: WeightAverage | None = None
        if config.ema.half_life is not None:
            half_life = config.ema.half_life.samples(self.clock)
            self.average = WeightAverage(parts.model, half_life)
        self.snapshots: SnapshotEnsemble | None = None
        if config.snapshot.cycles:
            self.snapshots = SnapshotEnsemble(parts.schedule.cycle_ends)
        self.state = RunState(parts.engine, self.average, self.snapshots, self.world)
        self.nonfinite = NonFinite(config.run.on_nonfinite, parts, directory.checkpoints)
        self._taken: Taken | None = None
        self._save_due = Every(config.checkpoint.every, self.clock).due
        self._named = Named(config.checkpoint.at, self.clock)
        self._check_due = Every(config.distributed.check_every, self.clock).due
        self.layers: LayerRecord | None = None
        # Under sharded parameters every rank measures its part; else the copy is rank 0's alone.
        measures = self.world.is_main or any(map(is_sharded, parts.model.parameters()))
        self._distance = WeightDistance(parts.model) if measures else None

    def resume(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's state.

        Raises:
            UserError: it does not fit, or holds what is not finite.
        """
        total = self.schedule.total_samples
        self.position = Position(**self.state.restore(state, vars(self.position), total))
        self.nonfinite.require_loadable(state)
        self.nonfinite.load(self.position.nonfinite)
        self._named.passed = self.position.samples

    def run(self, writers: Writers) -> bool:
        """Train to the end and return True, or False if a signal stopped the run before.

        Args:
            writers: of the metrics, on rank 0 only.

        Raises:
            RunFailure: a checkpoint cannot be written, memory ran out at the smallest batch, or
                loss, gradients or weights are not finite, see :class:`NonFinite`.
        """
        begun = time.monotonic()
        before = self.position.seconds
        progress = Progress(self.schedule.total_samples, self.position.samples, self.world.is_main)
        self.telemetry = Telemetry(
            writers,
            progress,
            self._distance,
            self.parts.task,
            self.config.telemetry.every,
            self.clock,
            self.heartbeat,
            self.config.telemetry.hardware_every,
        )
        times = self.parts.stepper.times
        readers: list[Reader] = [HostReader(), StepReader(times)]
        gpu = gpu_reader(self.parts.device)
        if gpu is not None:
            readers.append(gpu)
        sampler = HardwareSampler(readers, self.config.telemetry.hardware_every)
        self.heartbeat.note = lambda: {"hardware": sampler.latest}
        try:
            require_same_parameters(self.parts.model.parameters(), self.world, self.position.steps)
            return self._loop(begun - before)
        finally:
            sampler.close()
            self.telemetry.flush()
            progress.close()

    def _loop(self, since: float) -> bool:
        position, total = self.position, self.schedule.total_samples
        if (
            position.evaluated < position.samples
            and self._evaluation_due(max(0, position.samples - 1), position.samples)
            and self._evaluate(position.samples)
        ):
            self._save()
            return False
        if self._named.due(position.samples):
            self._save()
        while position.samples < total and not position.reached:
            for share in self.parts.feed.shares(position.samples):
                step = share.step
                stopping = self.step(share)
                if stopping is None:  # out of memory: begin again here with smaller passes
                    break
                position.seconds = time.monotonic() - since
                evaluate = self._evaluation_due(step.start, step.end)
                save = self._save_due(step, position.steps) or bool(self._named.due(step.end))
                save = save and step.end < total
                if evaluate or save:
                    stopping = self._read_all() or stopping
                if evaluate and not stopping:
                    stopping = self._evaluate(step.end)
                if stopping:
                    self._read_all()
                    self._save()
                    return False
                if position.reached:
                    break
                if save:
                    self._save()
        self._save(end=True)
        return True

    def step(self, share: Share) -> bool | None:
        """Take a step; return whether to stop after it, or None if memory ran out."""
        parts, position, step = self.parts, self.position, share.step
        rate = self.schedule.lr(step.start)
        set_step(parts.optimizer, self.config.optim, rate, step.size, self.clock, step.start)
        try:
            sums = parts.stepper.run(share, bool(self.stop))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._back_off(error, step)
            return None
        position.samples, position.steps = step.end, position.steps + 1
        self.heartbeat.activity.step = position.steps
        if self._check_due(step, position.steps):
            require_same_parameters(parts.model.parameters(), self.world, position.steps)
        if self.average is not None:
            self.average.update(step.size, parts.engine.found_inf)
        if self.snapshots is not None and self.snapshots.due(step.start, step.end):
            state = {**parts.model.state_dict(), **merged_running_stats(parts.model)}
            self.snapshots.add({n: t for n, t in state.items() if t.is_floating_point()})
        taken = Taken(
            step,
            position.steps,
            rate,
            share.order_hash() if self.world.is_main else "",
            sums,
            parts.stepper.own_sums,
            parts.stepper.clip_factor,
            parts.engine.found_inf,
            self._measure(position.steps),
            self._measure_layers(step, position.steps),
            parts.stepper.times.take(),
            time.perf_counter(),
        )
        # The step before is read while this one runs, so that a GPU never waits for the host; a
        # request to stop is met one step later for it, on all ranks alike.
        before, self._taken = self._taken, taken
        return self._read(before)

    def _measure(self, number: int) -> dict[str, float]:
        """Return the weights' norm and distance where this step is one of those measured."""
        if self._distance is None or not self._distance.due(number):
            return {}
        return self._distance.measure()

    def _measure_layers(self, step: Step, number: int) -> tuple[list[str], Tensor] | None:
        """Return the norms of the layers, still on the device, where this step is to show them."""
        if self.layers is None or not self.layers.due(step, number):
            return None
        return self.layers.measure()

    def _read(self, taken: Taken | None) -> bool:
        """Write the line of a step taken; return whether a rank was asked to stop by then."""
        if taken is None:
            return False
        values = taken.sums.tolist()
        self.nonfinite.count(
            taken.step,
            taken.number,
            values[0],
            taken.own_sums,
            taken.clip_factor,
            taken.found_inf,
        )
        if taken.layers is not None and self.layers is not None:
            self.layers.write(taken.step, taken.number, taken.layers)
        seconds = self.parts.stepper.times.seconds(taken.marks)
        if self.world.is_main and self.telemetry.due(taken.step, taken.number):
            extra: dict[str, Any] = {
                "lr": taken.lr,
                "order_hash": taken.order_hash,
                **seconds,
                **taken.weights,
                **self.nonfinite.figures(),
            }
            if taken.clip_factor is not None:
                extra["clip_factor"] = float(taken.clip_factor)
            scale = self.parts.engine.loss_scale()
            if scale is not None:
                extra["loss_scale"] = scale
            self.telemetry.train(taken.step, taken.number, values[:-1], extra, taken.at)
        self.nonfinite.require_progress()
        return bool(values[-1] > 0)

    def _read_all(self) -> bool:
        """Write the line still owed before anything that comes after it."""
        taken, self._taken = self._taken, None
        return self._read(taken)

    def _back_off(self, error: BaseException, step: Step) -> None:
        feed = self.parts.feed
        micro, auto = feed.micro(step), step.phase.micro == "auto"
        smaller = halved(micro, feed.atoms.size) if auto else None
        if smaller is None or self.world.world_size > 1:
            raise RunFailure(
                f"memory ran out at batch.micro={micro}: set batch.micro to less ({error})"
            ) from error
        say(f"memory ran out: batch.micro {micro} -> {smaller}")
        feed.fitting[step.phase.extent] = smaller
        self.parts.stepper.retry()

    def _evaluation_due(self, start: int, end: int) -> bool:
        epoch = self.clock.epoch_samples
        return end // epoch > start // epoch or end >= self.schedule.total_samples

    def _evaluate(self, samples: int) -> bool:
        """Write the validation line; return True if a signal came before it was complete."""
        parts, position = self.parts, self.position
        self.heartbeat.activity.doing = "evaluation"
        with swapped_in(parts.model, merged_running_stats(parts.model)):
            sums = self._sums()
            extra_sums = {}
            if self.average is not None:
                with swapped_in(parts.model, self.average.tensors):
                    extra_sums["ema"] = self._sums()
        if self.snapshots is not None and len(self.snapshots.members) > 1 and not self.stop:
            with parts.engine.evaluating():
                extra_sums["ensemble"] = self.snapshots.sums(parts.model, parts.evaluator)
        names = [
            name
            for name, wanted in (
                ("ema", self.average is not None),
                ("ensemble", self.snapshots is not None and len(self.snapshots.members) > 1),
            )
            if wanted
        ]
        empty = torch.zeros_like(sums)
        every = torch.stack(
            [
                sums,
                *(extra_sums.get(n, empty) for n in names),
                torch.full_like(sums, bool(self.stop)),
            ]
        )
        if self.world.world_size > 1:
            dist.all_reduce(every)
        rows = every.tolist()
        if rows[-1][0] > 0:
            return True
        extra: dict[str, Any] = {}
        for name, row in zip(names, rows[1:-1], strict=True):
            extra.update({f"{name}_{k}": v for k, v in parts.task.read(row).items()})
        position.evaluated = samples
        extra.update(self.nonfinite.figures())
        record = self.telemetry.validation(samples, position.steps, rows[0], extra)
        position.last = record
        self.nonfinite.evaluated(record["loss"], samples)
        for name, target in (self.config.run.target or {}).items():
            figure = parts.task.known(name)
            if name not in record:
                there = ", ".join(record)
                raise UserError(
                    f"run.target={{{name}: {target}}}: no such figure; there are {there}"
                )
            if position.reached is None and figure.reached(record[name], target):
                position.reached = {
                    name: record[name],
                    "seconds": position.seconds,
                    "samples": samples,
                    "steps": position.steps,
                }
        return False

    def _sums(self) -> Tensor:
        """Return this rank's metric sums; all ranks come here, also those asked to stop."""
        with self.parts.engine.evaluating():
            return self.parts.evaluator.sums(self.parts.model, self.stop)

    def _save(self, end: bool = False) -> None:
        """Write a checkpoint, unless it would be of a run that is lost."""
        self.heartbeat.activity.doing = "saving a checkpoint"
        self.position.nonfinite = self.nonfinite.state()
        state = self.state.capture(vars(self.position))
        taken = self.position.steps if end else None
        finite = self.nonfinite.require_finite(state, self.position.samples, taken)
        if finite and state is not None:
            self.telemetry.sync()
            checkpoint.save(
                self.directory.checkpoints,
                self.position.samples,
                state,
                self.config.checkpoint.keep,
                self._named.due(self.position.samples),
            )
        self._named.passed = self.position.samples
