"""One optimizer step: micro-batches forward and backward, gradient exchange, clip, update."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from largebatch.data import Batch
from largebatch.data.draws import key
from largebatch.engine import DataParallel
from largebatch.nn import discard_step, ghost_place, step_end
from largebatch.optim import clip_gradients
from largebatch.schedule import Step
from largebatch.tasks import Classification
from largebatch.train.precision import Precision
from largebatch.train.share import Micro

DROPOUT = 0x44726F70  # separates the stream of dropout seeds from the data's streams


class Stepper:
    """Takes optimizer steps.

    Args:
        seed: with the step's start, the rank and the micro-batch it seeds the device's generator,
            so that dropout needs no state in a checkpoint.
        varying_weight: whether the weight of a step is known only from its batches (unreadable
            images left out), so that ranks must add it up before the backward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Classification,
        engine: DataParallel,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        device: torch.device,
        clip_norm: float | None,
        seed: int,
        varying_weight: bool,
    ) -> None:
        self.model, self.task, self.engine = model, task, engine
        self.optimizer, self.precision, self.device = optimizer, precision, device
        self.clip_norm, self.seed, self.varying_weight = clip_norm, seed, varying_weight
        self.clip_factor: Tensor | None = None
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
        micros: tuple[Micro, ...],
        batches: Iterator[Batch],
        stop: bool,
    ) -> Tensor:
        """Take ``step``; return the float64 sums of all ranks ``[loss, metrics..., weight, stop]``.

        The last of them counts the ranks that were asked to stop, so all of them learn it in the
        same step without a message of its own.

        Args:
            ghosts: of the step, over all ranks.
            micros: this rank's forward passes; none if it has no samples.
            batches: yields the samples of each.
        """
        self.engine.begin()
        weight = float(step.size)
        if self.varying_weight:
            held = [next(batches) for _ in micros]
            weight, batches = self._global_weight(held), iter(held)
        sums, work = self._none, None
        if not micros:
            sums, work = self._send(sums, stop)
        for micro in micros:
            batch = next(batches)
            self._generator.manual_seed(key(self.seed, DROPOUT, step.start, micro.start))
            with ghost_place(micro.first_ghost, ghosts):
                loss, values = self._train(self.model, batch)
            sums = values if micro is micros[0] else sums + values.double()
            if micro is micros[-1]:
                sums, work = self._send(sums, stop)  # they travel while the backward pass runs
                self.engine.last()
            self.precision.scale(loss).backward(torch.full_like(loss, 1.0 / weight))
        self.engine.finish()
        self._update()
        step_end(self.model, ghosts)
        if work is not None:
            work.wait()
        return sums

    def _send(self, sums: Tensor, stop: bool) -> tuple[Tensor, Any]:
        sums = torch.cat((sums, self._asked[stop]))
        return sums, self.engine.sum(sums)

    def retry(self) -> None:
        """Drop what a step that ran out of memory has left behind."""
        discard_step(self.model)
        self.engine.begin()

    def _update(self) -> None:
        scaler = self.precision.scaler
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        if self.clip_norm is not None:
            self.clip_factor = clip_gradients(self.optimizer, self.clip_norm)
        if scaler is not None:
            scaler.step(self.optimizer)
            scaler.update()
        else:
            self.optimizer.step()

    def _global_weight(self, batches: list[Batch]) -> float:
        weight = torch.tensor(
            float(sum(self.task.weight(batch) for batch in batches)),
            dtype=torch.float64,
            device=self.device,
        )
        if not self.engine.alone:
            dist.all_reduce(weight)
        return max(float(weight), 1.0)
