"""Data-parallel gradient exchange with the same bits from run to run.

As in torch's DistributedDataParallel (Li et al. 2020, "PyTorch Distributed", section 3), gradients
lie in flat buckets, and a bucket's all-reduce starts while the backward pass still runs. There are
four differences. The layout of buckets does not depend on timing (see :func:`make_buckets`), unless
the user asks for this (see :class:`BucketSize`). The sum is not divided: the trainer divides the
loss by the step's global weight beforehand, so uneven shares are exact. Buffers are not broadcast.
A rank without samples takes part with zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from largebatch.distributed.backend import all_reduce_over
from largebatch.distributed.preference import Preference
from largebatch.engine.bucket import Bucket, make_buckets
from largebatch.engine.bucket_size import BUCKET_MB, BucketSize
from largebatch.engine.engine import Engine, broadcast_from_first
from largebatch.optim.squares import Squares
from largebatch.processes.environment import World

AUTO = Preference()
Hook = Callable[[Any, Any], torch.futures.Future[Any]]


class DataParallel(Engine):
    """Every rank holds the whole model; a step's gradients travel in buckets.

    Args:
        model, world: as for every engine.
        bucket_mb: size of a bucket. ``auto`` begins with torch's 25 MB. If the links were probed,
            it changes once, after the first steps, to the size that the cost model finds best.
        preference: the user's choice of all-reduce algorithm.
    """

    name = "ddp"
    own_gradients = True
    apart = ("ranks", "first", "passes")

    def __init__(
        self,
        model: nn.Module,
        world: World,
        bucket_mb: float | Literal["auto"] = BUCKET_MB,
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
        self._size: BucketSize | None = None
        if bucket_mb == "auto" and self.all_reduce.selection.model is not None:
            bytes = sum(p.numel() * p.element_size() for p in self._parameters)
            self._size = BucketSize(self.all_reduce, bytes)
        self._decided: float | None = None
        self._divide(BUCKET_MB if bucket_mb == "auto" else bucket_mb)
        self._missing: list[int] = []
        self._armed = False
        self._next = 0
        self._works: list[Any] = []
        for parameter in self._parameters:
            parameter.register_post_accumulate_grad_hook(self._ready)

    def register_comm_hook(self, state: Any, hook: Hook) -> None:
        """Let ``hook(state, bucket)`` exchange buckets: DDP's protocol, but with sums as results.

        ``bucket`` has the methods of ``dist.GradBucket``. The hook returns a future whose value is
        the reduced buffer.
        """
        self._hook = (state, hook)

    def watch_squares(self) -> Squares:
        """Return the squared norms of gradients; a bucket's are computed before it is sent."""
        if self.squares is None:
            self.squares = Squares(group["params"] for group in self.optimizer.param_groups)
        return self.squares

    def begin(self) -> None:
        """Clear the gradients."""
        if self.squares is not None:
            self.squares.begin()
        if self.alone:
            for parameter in self._parameters:
                parameter.grad = None
            return
        if self._size is not None:
            self._decide(self._size.decide())
        for bucket in self._buckets:
            bucket.attach()
        self._missing = [len(bucket.parameters()) for bucket in self._buckets]
        self._armed = False
        self._next = 0

    def last(self, overlap: bool = True) -> None:
        """Announce the step's last backward pass: buckets are sent as soon as they are complete."""
        self._armed = overlap
        if not self.alone and self._size is not None:
            self._size.begin()

    def finish(self) -> None:
        """Wait until every gradient is the sum over all ranks."""
        if self.alone:
            for parameter in self._parameters:
                if parameter.grad is None:  # unused in this step: zero, as on several ranks
                    parameter.grad = torch.zeros_like(parameter)
            if self.squares is not None:
                self.squares.add(self._parameters)
            self._finish_squares()
            return
        if self._size is not None:
            self._size.end()
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
        self._finish_squares()

    def exchange_state(self) -> dict[str, Any] | None:
        """Return the bucket size that ``auto`` decided on, and the grid it was decided for."""
        if self.alone or self._decided is None:
            return None
        return {"bucket_mb": self._decided, "topology": self.all_reduce.topology.key()}

    def load_exchange_state(self, state: dict[str, Any]) -> None:
        """Restore the bucket size, unless the ranks are now placed differently."""
        if (
            not self.alone
            and self._size is not None
            and state["topology"] == self.all_reduce.topology.key()
        ):
            self._decide(state["bucket_mb"])

    def _decide(self, megabytes: float | None) -> None:
        if megabytes is not None:
            self._size, self._decided = None, megabytes
            self._divide(megabytes)

    def _divide(self, megabytes: float) -> None:
        self._buckets = make_buckets(self._parameters, megabytes)
        self._bucket_of = {p: b for b in self._buckets for p in b.parameters()}

    def _ready(self, parameter: Tensor) -> None:
        if not self._armed:
            return
        self._missing[self._bucket_of[parameter].index()] -= 1  # type: ignore[index]
        # Every rank must launch in one order, so a bucket waits for those before it.
        while self._next < len(self._buckets) and self._missing[self._next] == 0:
            self._launch(self._buckets[self._next])

    def _finish_squares(self) -> None:
        if self.squares is not None:
            # Under fp16 the gradients are scaled until the update.
            sums = None if self.alone else self.squares.grads()
            self.squares.finish(sums, self.scale_now())

    def _launch(self, bucket: Bucket) -> None:
        if self.squares is not None:
            self.squares.add(bucket.parameters())
        if self._hook is None:
            self._works.append(self.all_reduce.start(bucket.buffer()))
        else:
            state, hook = self._hook
            self._works.append(hook(state, bucket))
        self._next += 1
