"""One optimizer step: micro-batches forward and backward, gradient exchange, clip, update."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from largebatch.data import Batch
from largebatch.data.draws import key
from largebatch.engine import Engine
from largebatch.nn import discard_step, frozen_statistics, ghost_place, step_end
from largebatch.optim import SAM, Clipping
from largebatch.schedule import Step
from largebatch.tasks import Classification
from largebatch.train.held import HeldBuffers
from largebatch.train.precision import Precision
from largebatch.train.share import Part
from largebatch.train.step_times import StepTimes

DROPOUT = 0x44726F70  # separates the stream of dropout seeds from the data's streams


@dataclass(frozen=True)
class _Passes:
    """What the passes of one step have in common."""

    step: Step
    ghosts: int
    parts: tuple[Part, ...]
    weight: float


class Stepper:
    """Takes optimizer steps.

    Args:
        clip: clips the gradients.
        sam: takes every step from the gradient at perturbed weights; its micro-batches are held in
            memory for their second pass.
        seed: with the step's start, the rank and the micro-batch it seeds the device's generator,
            so that dropout needs no state in a checkpoint.
        varying_weight: whether the weight of a step is known only from its batches (unreadable
            images left out), so that ranks must add it up before the backward pass.

    Attributes:
        clip_factor: of the last step, if gradients are clipped by their norm.
        own_sums: of the last step, this rank's part of what :meth:`run` returns.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Classification,
        engine: Engine,
        precision: Precision,
        device: torch.device,
        clip: Clipping,
        sam: SAM | None,
        seed: int,
        varying_weight: bool,
    ) -> None:
        self.model, self.task, self.engine = model, task, engine
        self.precision, self.device = precision, device
        self.clip, self.sam = clip, sam
        self.seed, self.varying_weight = seed, varying_weight
        self.clip_factor: Tensor | None = None
        self.own_sums: Tensor | None = None
        self._buffers = HeldBuffers(model) if engine.may_skip else None
        self.times = StepTimes(device)
        self._none = torch.zeros(2 + len(task.metrics), dtype=torch.float64, device=device)
        self._asked = torch.tensor([[0.0], [1.0]], dtype=torch.float64, device=device).unbind()
        self._train = precision.wrap(task.train)
        self._generator = (
            torch.cuda.default_generators[device.index or 0]
            if device.type == "cuda"
            else torch.default_generator
        )

    def run(
        self,
        step: Step,
        ghosts: int,
        parts: tuple[Part, ...],
        batches: Iterator[Batch],
        stop: bool,
    ) -> Tensor:
        """Take ``step``; return the float64 sums of all ranks ``[loss, metrics..., weight, stop]``.

        The last of them counts the ranks that were asked to stop, so all of them learn it in the
        same step without a message of its own.

        Args:
            ghosts: of the step, over all ranks.
            parts: this rank's forward passes; none if it has no samples.
            batches: yields the samples of each.
        """
        self.times.begin()
        if self._buffers is not None:
            self._buffers.hold()
        weight, held = float(step.size), None
        if self.varying_weight or self.sam is not None:
            self.times.enter("data")
            held = [next(batches) for _ in parts]
        if self.varying_weight:
            assert held is not None
            self.times.enter("communication")
            weight = self._global_weight(parts, held)
        passes = _Passes(step, ghosts, parts, weight)
        summed = self.sam is None or self.sam.scope == "global"
        sums, work = self._pass(passes, batches if held is None else iter(held), stop, summed)
        if self.sam is not None:
            assert held is not None
            self.times.enter("compute")
            with self.sam.perturbed():
                self._pass(passes, iter(held), None, True)
        if work is not None:
            work.wait()
        self.times.enter("optimizer")
        loss = sums[0] if self.engine.skip else None
        self.clip_factor = self.engine.update(self.clip, loss)
        step_end(self.model, ghosts)
        if self._buffers is not None and self.engine.found_inf is not None:
            self._buffers.put_back(self.engine.found_inf)
        self.times.enter("between steps")
        return sums

    def _pass(
        self, passes: _Passes, batches: Iterator[Batch], stop: bool | None, summed: bool
    ) -> tuple[Tensor, Any]:
        """Take every micro-batch forward and backward, and sum the gradients of all ranks.

        Args:
            stop: sent along with the sums of loss and metrics; None: these are not sent.
            summed: False leaves each rank its own gradients.
        """
        step, parts = passes.step, passes.parts
        self.times.enter("compute")
        self.engine.begin()
        sums, work = self._none, None
        if not parts and stop is not None:
            sums, work = self._send(sums, stop)
        for number, part in enumerate(parts, 1):
            self.times.enter("data")
            batch = next(batches)
            self.times.enter("compute")
            self._generator.manual_seed(key(self.seed, DROPOUT, step.start, part.start))
            with frozen_statistics(self.model) if part.idle else nullcontext():
                with ghost_place(part.first_ghost, passes.ghosts):
                    loss, values = self._train(self.engine.module, batch)
                if not part.idle:
                    sums = values if sums is self._none else sums + values.double()
                if number == len(parts):
                    if stop is not None:
                        sums, work = self._send(sums, stop)  # they travel during the backward pass
                    if summed:
                        self.engine.last()
                self.engine.backward(loss, 0.0 if part.idle else 1.0 / passes.weight)
        self.times.enter("communication")
        if summed:
            self.engine.finish()
        return sums, work

    def _send(self, sums: Tensor, stop: bool) -> tuple[Tensor, Any]:
        self.own_sums = sums
        sums = torch.cat((sums, self._asked[stop]))
        return sums, self.engine.sum(sums)

    def retry(self) -> None:
        """Drop what a step that ran out of memory has left behind."""
        discard_step(self.model)
        self.engine.begin()

    def _global_weight(self, parts: tuple[Part, ...], batches: list[Batch]) -> float:
        own = [b for p, b in zip(parts, batches, strict=True) if not p.idle]
        weight = torch.tensor(
            float(sum(self.task.weight(batch) for batch in own)),
            dtype=torch.float64,
            device=self.device,
        )
        if not self.engine.alone:
            dist.all_reduce(weight)
        return max(float(weight), 1.0)
