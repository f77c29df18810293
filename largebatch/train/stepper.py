"""One optimizer step: micro-batches forward and backward, gradient exchange, clip, update."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from largebatch.data import Batch
from largebatch.data.draws import key
from largebatch.engine import Engine
from largebatch.nn import (
    discard_step,
    frozen_statistics,
    ghost_place,
    keep_running,
    step_end,
)
from largebatch.optim import SAM, Clipping
from largebatch.probes import Forward, Replay
from largebatch.probes.panel import Watch
from largebatch.schedule import half_life_factor
from largebatch.tasks import Task
from largebatch.train.coupling import Coupling, tied
from largebatch.train.feed import Pass, Share
from largebatch.train.held import HeldBuffers
from largebatch.train.precision import Precision
from largebatch.train.replay import StepReplay
from largebatch.train.step_times import StepTimes

DROPOUT = 0x44726F70  # separates the stream of dropout seeds from the data's streams


class Stepper:
    """Takes optimizer steps.

    Args:
        clip: clips the gradients.
        sam: the SAM wrapper, which takes every step from the gradient at perturbed weights. A
            step's micro-batches are then kept in memory for the second pass.
        seed: seeds the device's generator, together with the step's start, the rank and the
            micro-batch. So dropout needs no state in a checkpoint.
        leaves_out: whether unreadable samples may be left out, so that a step's weight is known
            only from its batches.
        ranks: process group whose ranks hold a ghost together; None: each ghost is on one rank.
        half_life: half-life of the norms' running statistics, in samples; None: momentum is used.
        coupling: computes losses that tie the samples of a step together; a step's passes are then
            kept in memory.

    Attributes:
        clip_factor: clip factor of the last step, if gradients are clipped by their norm.
        own_sums: this rank's part of the sums that :meth:`run` returned for the last step.
        batch: batch of the last pass, for instruments, until the step's update.
        replay: repeats the last step's passes, for instruments that asked for it.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task[Any],
        engine: Engine,
        precision: Precision,
        device: torch.device,
        clip: Clipping,
        sam: SAM | None,
        seed: int,
        leaves_out: bool = False,
        ranks: Any = None,
        half_life: float | None = None,
        coupling: Coupling | None = None,
    ) -> None:
        self.model, self.task, self.engine = model, task, engine
        self.precision, self.device = precision, device
        self.clip, self.sam = clip, sam
        self.seed, self.leaves_out, self.ranks = seed, leaves_out, ranks
        self._half_life, self._coupling = half_life, coupling
        self._carry = task.carry()
        self._memory: dict[int, Tensor] = {}
        self.clip_factor: Tensor | None = None
        self.own_sums: Tensor | None = None
        self.batch: Batch | None = None
        self.replay: Replay | None = None
        self._buffers = HeldBuffers(model) if engine.may_skip else None
        self.times = StepTimes(device)
        self._none = task.no_sums(device)
        self._asked = torch.tensor([[0.0], [1.0]], dtype=torch.float64, device=device).unbind()
        self.train: Forward = precision.wrap(task.train)
        self._generator = (
            torch.cuda.default_generators[device.index or 0]
            if device.type == "cuda"
            else torch.default_generator
        )

    def run(self, share: Share, stop: bool, watch: Watch | None = None) -> Tensor:
        """Take a step; return the float64 sums of all ranks ``[loss, figures..., weight, stop]``.

        ``stop`` counts the ranks that were asked to stop. So all ranks learn of a request in the
        same step, without a separate message.

        Args:
            watch: called with ``gradients`` after the passes that give the step's gradient, and
                with ``exchanged`` before the update.
        """
        self.times.begin()
        self._memory, self.replay = self._rows(), None
        if self._buffers is not None:
            self._buffers.hold()
        if self._half_life is not None:
            kept = half_life_factor(share.step.size, self._half_life)
            keep_running(self.model, kept, share.ghosts, len(share.parts))
        weight = None if self.leaves_out else self.task.step_weight(share.step.size)
        passes: Iterable[Pass] = share.passes
        again = watch is not None and watch.replays
        if weight is None or self.sam is not None or again or self._coupling is not None:
            self.times.enter("data")
            passes = held = list(share.passes)
        if weight is None:
            self.times.enter("communication")
            weight = self._global_weight(held)
        summed = self.sam is None or self.sam.scope == "global"
        if again:
            self.replay = StepReplay(self, share, held, weight, self._memory)
        alone = watch if self.sam is None else None
        sums, work = self._pass(share, passes, weight, stop, summed, alone)
        if self.sam is not None:
            self.times.enter("compute")
            # Memory after the step is that of the weights the run has, not of the perturbed ones.
            with self.memory_of(self._memory), self.sam.perturbed():
                self._pass(share, held, weight, None, True, watch)
        if work is not None:
            work.wait()
        if watch is not None:
            watch("exchanged")
            self.batch = None
        self.times.enter("optimizer")
        loss = sums[0] if self.engine.skip else None
        self.clip_factor = self.engine.update(self.clip, loss)
        step_end(self.model, share.ghosts)
        if self._buffers is not None and self.engine.found_inf is not None:
            self._buffers.put_back(self.engine.found_inf)
        self.times.enter("between steps")
        return sums

    def _pass(
        self,
        share: Share,
        passes: Iterable[Pass],
        weight: float,
        stop: bool | None,
        summed: bool,
        watch: Watch | None,
    ) -> tuple[Tensor, Any]:
        """Take every pass forward and backward, and sum the gradients of all ranks.

        Args:
            weight: of the whole step, which the loss is divided by.
            stop: sent along with the sums of loss and figures; None: these are not sent.
            summed: False leaves each rank its own gradients.
            watch: as :meth:`run` has it; the gradients are this rank's own when it is called.
        """
        self.times.enter("compute")
        self.engine.begin()
        sums, work, train = self._none, None, None
        if self._coupling is not None:
            passes = list(passes)
            train = tied(self, self._coupling, share, passes)
        count, coming = len(share.parts), iter(passes)
        squares = self.engine.squares
        if not count and stop is not None:
            sums, work = self._send(sums, stop)
        for number in range(1, count + 1):
            self.times.enter("data")
            one = next(coming)
            part = one.part
            self.times.enter("compute")
            with self.frozen() if part.idle else nullcontext():
                loss, values = self.forward(share, one, train)
                if not part.idle:
                    sums = values if sums is self._none else sums + values.double()
                if number == count:
                    if stop is not None:
                        sums, work = self._send(sums, stop)  # they travel during the backward pass
                    if summed:
                        self.engine.last(overlap=watch is None or not watch.holds)
                self.engine.backward(loss, 0.0 if part.idle else 1.0 / weight)
            if squares is not None and not part.idle:
                squares.passed(values[-1], weight, last=number == count)
        self.times.enter("communication")
        if watch is not None:
            self.batch = one.batch if count and not one.part.idle else None
            watch("gradients")
        if summed:
            self.engine.finish()
        return sums, work

    def forward(self, share: Share, one: Pass, train: Forward | None = None) -> Any:
        """Run a forward pass of a step, with ``train`` in place of the task's own function."""
        part = one.part
        self._generator.manual_seed(key(self.seed, DROPOUT, share.step.start, part.start))
        step = share.step.start
        with ghost_place(part.first_ghost, share.ghosts, one.ghosts, self.ranks, step):
            return (train or self.train)(self.engine.module, one.batch)

    @contextmanager
    def memory_of(self, rows: dict[int, Tensor]) -> Iterator[None]:
        """Start a ``with`` block from stream memory ``rows``; restore the memory afterwards."""
        after = self._rows()
        self._remember(rows)
        try:
            yield
        finally:
            self._remember(after)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Leave running statistics and stream memory unchanged inside a ``with`` block."""
        with frozen_statistics(self.model), self.task.undisturbed():
            yield

    def _send(self, sums: Tensor, stop: bool) -> tuple[Tensor, Any]:
        self.own_sums = sums
        sums = torch.cat((sums, self._asked[stop]))
        return sums, self.engine.sum(sums)

    def retry(self) -> None:
        """Clean up after a step that ran out of memory."""
        discard_step(self.model)
        self._remember(self._memory)
        self.engine.begin()

    def _rows(self) -> dict[int, Tensor]:
        return {} if self._carry is None else self._carry.rows()

    def _remember(self, rows: dict[int, Tensor]) -> None:
        if self._carry is not None:
            self._carry.load(rows)

    def _global_weight(self, passes: list[Pass]) -> float:
        own = sum(self.task.weight(one.batch) for one in passes if not one.part.idle)
        if self.engine.alone:  # without a wait for the device
            return max(float(own), 1.0)
        weight = torch.tensor(float(own), dtype=torch.float64, device=self.device)
        dist.all_reduce(weight)
        return max(float(weight), 1.0)
