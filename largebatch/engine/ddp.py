"""Data-parallel gradient exchange that keeps its bits from run to run.

The idea of torch's DistributedDataParallel (Li et al. 2020, "PyTorch Distributed", section 3):
gradients lie in flat buckets, and a bucket's all-reduce starts while the backward pass still runs.
What differs: the layout is fixed (see :func:`make_buckets`), the sum is not divided (the trainer
divides the loss by the step's global weight beforehand, so uneven shares are exact), buffers are
not broadcast, and a rank without samples takes part with zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.distributed.backend import all_reduce_over
from largebatch.distributed.environment import World
from largebatch.distributed.preference import Preference
from largebatch.engine.bucket import Bucket, make_buckets
from largebatch.engine.engine import Engine, broadcast_from_first

AUTO = Preference()
Hook = Callable[[Any, Any], torch.futures.Future[Any]]


class DataParallel(Engine):
    """Every rank holds the whole model; a step's gradients travel in buckets."""

    def __init__(
        self,
        model: nn.Module,
        world: World,
        bucket_mb: float = 25.0,
        preference: Preference = AUTO,
    ) -> None:
        super().__init__(model, world)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._hook: tuple[Any, Hook] | None = None
        if self.alone:
            return
        broadcast_from_first(model)
        device = self._parameters[0].device if self._parameters else torch.device("cpu")
        self.all_reduce = all_reduce_over("engine", None, device, preference)
        self._buckets = make_buckets(self._parameters, bucket_mb)
        self._bucket_of = {p: b for b in self._buckets for p in b.parameters()}
        self._missing: list[int] = []
        self._armed = False
        self._next = 0
        self._works: list[Any] = []
        for parameter in self._parameters:
            parameter.register_post_accumulate_grad_hook(self._ready)

    def register_comm_hook(self, state: Any, hook: Hook) -> None:
        """Let ``hook(state, bucket)`` exchange a bucket: DDP's protocol, but sums are expected.

        ``bucket`` answers as ``dist.GradBucket`` does; the future's value is the reduced buffer.
        """
        self._hook = (state, hook)

    def begin(self) -> None:
        """Clear the gradients."""
        if self.alone:
            for parameter in self._parameters:
                parameter.grad = None
            return
        for bucket in self._buckets:
            bucket.attach()
        self._missing = [len(bucket.parameters()) for bucket in self._buckets]
        self._armed = False
        self._next = 0

    def last(self) -> None:
        """Announce the step's last backward pass: buckets leave as soon as they are complete."""
        self._armed = True

    def finish(self) -> None:
        """Wait until every gradient is the sum over all ranks."""
        if self.alone:
            for parameter in self._parameters:
                if parameter.grad is None:  # unused in this step: zero, as on several ranks
                    parameter.grad = torch.zeros_like(parameter)
            return
        while self._next < len(self._buckets):
            self._launch(self._buckets[self._next])
        for bucket, work in zip(self._buckets, self._works, strict=True):
            if self._hook is None:
                work.wait()
            else:
                value = work.wait()
                bucket.set_buffer(value[0] if isinstance(value, list) else value)
        self._works.clear()
        self._armed = False

    def _ready(self, parameter: Tensor) -> None:
        if not self._armed:
            return
        self._missing[self._bucket_of[parameter].index()] -= 1  # type: ignore[index]
        # Every rank must launch in one order, so a bucket waits for those before it.
        while self._next < len(self._buckets) and self._missing[self._next] == 0:
            self._launch(self._buckets[self._next])

    def _launch(self, bucket: Bucket) -> None:
        if self._hook is None:
            self._works.append(self.all_reduce.start(bucket.buffer()))
        else:
            state, hook = self._hook
            self._works.append(hook(state, bucket))
        self._next += 1
