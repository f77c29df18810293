"""The training loop of a run, which can stop after any step and continue later."""

from __future__ import annotations

import time
from typing import Any

from largebatch.optim import set_step
from largebatch.probes.panel import Found
from largebatch.processes.age import process_seconds
from largebatch.processes.heartbeat import Heartbeat
from largebatch.processes.lifetime import StopRequest
from largebatch.record import RunDirectory
from largebatch.schedule import Every, Step
from largebatch.train import checkpoint
from largebatch.train.back_off import back_off
from largebatch.train.build import Parts
from largebatch.train.config import Config
from largebatch.train.control import NoiseControl
from largebatch.train.feed import Share
from largebatch.train.instruments import build_evaluations, build_moment, build_panel
from largebatch.train.ledger import Ledger, Taken
from largebatch.train.micro import is_out_of_memory
from largebatch.train.moments import PhaseMoments
from largebatch.train.named import Named
from largebatch.train.nonfinite import NonFinite
from largebatch.train.position import Position
from largebatch.train.progress import Progress, say
from largebatch.train.state import RunState
from largebatch.train.telemetry import Telemetry, Writers


class Trainer:
    """Trains the parts made by :func:`~largebatch.train.build.build`.

    Args:
        directory: directory for results; only rank 0 writes.
        stop: request to stop, set by a signal; the ranks agree on the step after which they stop.
        heartbeat: this rank's heartbeat, which carries hardware readings to rank 0.

    Raises:
        UserError: a probe or an evaluation in the config is not possible for this run.
    """

    def __init__(
        self,
        config: Config,
        parts: Parts,
        directory: RunDirectory,
        stop: StopRequest,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        self.config, self.parts, self.directory, self.stop = config, parts, directory, stop
        self.heartbeat = heartbeat or Heartbeat(parts.world)
        parts.stepper.times.activity = self.heartbeat.activity
        self.world, self.schedule, self.clock = parts.world, parts.schedule, parts.schedule.clock
        self.position = Position()
        every, main = config.telemetry.every, self.world.is_main
        self.telemetry = Telemetry(parts.task, every, self.clock, shown=main)
        self.panel = build_panel(config, parts, directory, self.heartbeat, self.telemetry)
        self.control = self.panel.find(NoiseControl)
        self.moments = PhaseMoments(parts.schedule, parts.optimizer, parts.model)
        self.evaluations = build_evaluations(config, parts, self.panel, stop)
        self.state = RunState(parts.engine, self.panel, self.world, parts.streams)
        self.nonfinite = NonFinite(config.run.on_nonfinite, parts, directory.checkpoints)
        self.ledger = Ledger(parts, self.panel, self.nonfinite, self.telemetry)
        self._at = build_moment(config, parts, self.panel, lambda why: self.position.end(why))
        self._save_due = Every(config.checkpoint.every, self.clock).due
        self._named = Named(config.checkpoint.at, self.clock)
        self._switched = False
        self.start_seconds = 0.0  # of this session: from its process to its first step

    def resume(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's state.

        Raises:
            UserError: the state does not fit, or holds a value that is not finite.
        """
        total = self.schedule.total_samples
        self.position = Position(**self.state.restore(state, vars(self.position), total))
        self.nonfinite.require_loadable(state)
        self.nonfinite.load(self.position.nonfinite)
        self._named.passed = self.position.samples

    def run(self, writers: Writers = ()) -> bool:
        """Train to the end and return True; return False if a signal stopped the run.

        Args:
            writers: destinations of metrics lines, on rank 0 only.

        Raises:
            RunFailure: a checkpoint cannot be written; memory ran out with the smallest forward
                pass; or loss, gradients or weights are not finite, see :class:`NonFinite`.
        """
        self.start_seconds = process_seconds()
        since = time.monotonic() - self.position.seconds
        position, total, main = self.position, self.schedule.total_samples, self.world.is_main
        progress = Progress(self.parts.task, total, position.samples, main)
        self.telemetry.open(writers, progress, position.samples)
        try:
            self.panel.begin(position.samples, position.steps, say)
            return self._loop(since)
        finally:
            self.panel.close(say)
            self.telemetry.close()

    def _loop(self, since: float) -> bool:
        position, total = self.position, self.schedule.total_samples
        if position.evaluated < position.samples:  # one may have been thrown away
            step = self.schedule.plan.step_before(position.samples)
            if self._evaluation_due(step) and self._evaluate(step):
                self._save()
                return False
        if self._named.due(position.samples):
            self._save()
        while position.samples < total and not position.reached:
            for share in self.parts.feed.shares(position.samples):
                stopping = self.step(share)
                if stopping is None:  # out of memory: begin again here with smaller passes
                    break
                position.seconds = time.monotonic() - since
                if self._stops_after(share.step, stopping):
                    return False
                if position.reached or self._switched:  # go on here with the new batch
                    break
        position.last = {**(position.last or {}), **self.panel.ask("end", self._at)} or None
        self._save(end=True)
        return True

    def _stops_after(self, step: Step, stopping: bool) -> bool:
        """Evaluate and save where it is time to; return whether the run was asked to stop."""
        evaluate = self._evaluation_due(step)
        decide = self.control is not None and self.control.window_ends(step)
        save = self._save_due(step, self.position.steps) or bool(self._named.due(step.end))
        save = save and step.end < self.schedule.total_samples
        if evaluate or save or decide:
            stopping = self.ledger.settle() or stopping
        self._switched = self.control is not None and decide and self.control.decide(step)
        if evaluate and not stopping:
            stopping = self._evaluate(step)
        if stopping:
            self.ledger.settle()
            self._save()
        elif save and not self.position.reached:
            self._save()
        return stopping

    def step(self, share: Share) -> bool | None:
        """Take a step; return whether to stop after it, or None if memory ran out."""
        parts, position, step, at = self.parts, self.position, share.step, self._at
        rate = self.schedule.lr(step.start)
        self.moments.enter(step)
        set_step(
            parts.optimizer,
            self.config.optim,
            rate,
            step.size,
            self.clock,
            step.start,
            self.schedule.reference,
            self.schedule.peak(step.start),
            step.phase.size,
        )
        at.step, at.number = step, position.steps + 1
        at.parts = tuple(part.stop - part.start for part in share.parts if not part.idle)
        found: Found = []
        try:
            sums = parts.stepper.run(share, bool(self.stop), self.panel.watch(at, found))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            back_off(error, step, parts.feed, parts.stepper)
            return None
        position.samples, position.steps = step.end, at.number
        self.heartbeat.activity.step = at.number
        at.left_out = parts.engine.found_inf
        self.panel.stepped(at, found)
        taken = Taken(
            step,
            at.number,
            rate,
            share.order_hash() if self.world.is_main else "",
            sums,
            parts.stepper.own_sums,
            parts.stepper.clip_factor,
            parts.engine.found_inf,
            found,
            parts.stepper.times.take(),
        )
        return self.ledger.enter(taken)

    def _ends_at(self, step: Step) -> bool:
        return step.end >= self.schedule.total_samples or self.position.reached is not None

    def _evaluation_due(self, step: Step) -> bool:
        return self._ends_at(step) or self.evaluations.due(step, self.position.steps)

    def _evaluate(self, step: Step) -> bool:
        """Write the line of the evaluations; return True if a signal came before its end."""
        position, at = self.position, self._at
        self.heartbeat.activity.doing = "evaluation"
        self.telemetry.pause()
        figures = self.evaluations.run(step, position.steps, self._ends_at(step))
        if figures is None:
            return True
        split = "val" if "loss" in figures else "also"
        place = self.telemetry.place(split, step.end, position.steps)
        record = {**place, **figures, **self.nonfinite.figures()}
        at.step, at.number, at.record = step, position.steps, record
        record |= self.panel.ask("evaluated", at)
        position.evaluated = step.end
        self.telemetry.evaluation(record)
        if split == "val":
            position.last = record
            self.nonfinite.evaluated(record["loss"], step.end)
        return False

    def _save(self, end: bool = False) -> None:
        """Write a checkpoint, unless it would be of a run that is lost."""
        self.heartbeat.activity.doing = "saving a checkpoint"
        self.position.nonfinite = self.nonfinite.state()
        state = self.state.capture(vars(self.position))
        taken = self.position.steps if end else None
        finite = self.nonfinite.require_finite(state, self.position.samples, taken)
        if finite and state is not None:
            self.telemetry.sync()
            keep, names = self.config.checkpoint.keep, self._named.due(self.position.samples)
            checkpoint.save(self.directory.checkpoints, self.position.samples, state, keep, names)
        self._named.passed = self.position.samples
