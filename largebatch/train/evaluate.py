"""Evaluation: every sample exactly once over all ranks, without changing the run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from largebatch.data import Batch, EpochOrder, Order, Reader, Request, Source, StreamOrder
from largebatch.processes import World
from largebatch.processes.agreement import gathered
from largebatch.tasks import Task
from largebatch.train.coupling import Coupling, Placed
from largebatch.train.feed import Spans
from largebatch.train.precision import Precision

LARGEST_BATCH = 1024  # more samples in a forward pass are no quicker


@contextmanager
def evaluating(model: nn.Module, device: torch.device, precision: Precision) -> Iterator[None]:
    """Put ``model`` in evaluation mode without gradients; restore flags and generators afterwards.

    Forward passes run in the number formats of training. Each module's own training flag is
    restored, since a user may have frozen some modules (a batch norm, say).
    """
    flags = [(module, module.training) for module in model.modules()]
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    states = [generator.get_state() for generator in generators]
    model.eval()
    try:
        with torch.no_grad(), precision.autocast():
            yield
    finally:
        for module, flag in flags:
            module.training = flag
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def requests(
    count: int,
    batch: int,
    world: World,
    streams: StreamOrder | None = None,
    order: Order | None = None,
    parts: int = 1,
) -> Iterator[Request]:
    """Split ``count`` samples into this rank's contiguous share, in batches of ``batch``.

    The samples are the first ones of ``order``'s first epoch; by default of the data in their own
    order. No batch crosses a border of ``parts`` (`part_of`). If the samples are read in
    ``streams``, a rank's share is a number of streams, of which ``batch`` are read side by side
    from begin to end.
    """
    if streams is not None:
        yield from _of_streams(streams, batch, world)
        return
    order = order or EpochOrder(count, seed=0, shuffle=False)
    start, end = spans_of(count, world)[world.rank]
    while start < end:
        stop = min(start + batch, end, part_begin(part_of(start, count, parts) + 1, count, parts))
        yield Request(0, order.indices(0, start, stop), np.arange(start, stop))
        start = stop


def part_of(position: int, count: int, parts: int) -> int:
    """Return the number (from 0) of the equal part of ``count`` samples that a position is in."""
    return ((position + 1) * parts - 1) // count


def part_begin(part: int, count: int, parts: int) -> int:
    """Return the first position of a part."""
    return part * count // parts


def spans_of(count: int, world: World) -> Spans:
    """Return where each rank's share of ``count`` samples begins and ends."""
    ends = [count * rank // world.world_size for rank in range(world.world_size + 1)]
    return tuple(pairwise(ends))


def _of_streams(order: StreamOrder, batch: int, world: World) -> Iterator[Request]:
    begin = order.streams * world.rank // world.world_size
    end = order.streams * (world.rank + 1) // world.world_size
    for first in range(begin, end, batch):
        stop = min(first + batch, end)
        for at in range(0, order.n, order.streams):
            indices = order.indices(0, at + first, at + stop)
            yield Request(0, indices, np.arange(at + first, at + stop))


def evaluation_batch(micro: int | None, share: int, samples: int) -> int:
    """Return the samples of a forward pass in evaluation.

    Args:
        micro: samples of a training pass; None: the whole share.
        share: largest number of samples of a rank in a training step, in whole atoms.
        samples: size of the validation set.
    """
    return max(1, min(LARGEST_BATCH, micro or share, samples))


def streams_of(source: Source) -> StreamOrder | None:
    """Return the order in which a source reads streams; None if its samples are independent."""
    order = source.order(0)
    return order if isinstance(order, StreamOrder) else None


class Evaluator:
    """Computes the task's sums over the validation set.

    Args:
        batch: samples per forward pass.
        precision: number formats of forward passes.
        streams: the order of the samples, if they are streams.
        coupling: computes losses that tie samples together.
        order: order whose first ``count`` samples are taken; None: the order of the data.
        parts: number of parts of the set whose sums are kept separately; not for streams or tied
            samples.
    """

    def __init__(
        self,
        task: Task[Any],
        reader: Reader,
        count: int,
        batch: int,
        world: World,
        device: torch.device,
        precision: Precision,
        streams: StreamOrder | None = None,
        coupling: Coupling | None = None,
        order: Order | None = None,
        parts: int = 1,
    ) -> None:
        self.task, self.reader, self.count = task, reader, count
        self.streams, self._coupling, self.order = streams, coupling, order
        whole = streams is not None or coupling is not None
        self.parts = 1 if whole else min(parts, count)
        self.batch, self.world = batch, world
        self.device, self.precision = device, precision

    def batches(self) -> Iterator[Batch]:
        """Iterate over this rank's share of the validation set."""
        wanted = requests(self.count, self.batch, self.world, self.streams, self.order, self.parts)
        return iter(self.reader.read(wanted))

    def sums(self, model: nn.Module, stopped: object = None) -> Tensor:
        """Return this rank's float64 ``[loss, metrics..., weight]``."""
        return self.sums_of_parts(model, stopped).sum(0)

    def sums_of_parts(self, model: nn.Module, stopped: object = None) -> Tensor:
        """Return this rank's float64 ``[loss, metrics..., weight]``, one row per part.

        If ``stopped`` returns true, the evaluation ends early. The caller must then discard the
        sums of all ranks.
        """
        if self._coupling is not None:
            return self._coupled(model, self._coupling, stopped)[None]
        total = self.task.no_sums(self.device).repeat(self.parts, 1)
        with evaluating(model, self.device, self.precision), self.task.undisturbed():
            for batch in () if stopped else self.batches():
                if len(batch):
                    part = part_of(int(batch.positions[0]), self.count, self.parts)
                    total[part] += self.task.evaluate(model, batch)
                if stopped:
                    break
        return total

    def _coupled(self, model: nn.Module, coupling: Coupling, stopped: object) -> Tensor:
        held: list[Placed] = []
        with evaluating(model, self.device, self.precision), self.task.undisturbed():
            for batch in () if stopped else self.batches():
                held.append((coupling.task.embed(model, batch), batch.positions))
                if stopped:
                    break
            if any(gathered(bool(stopped), self.world)):
                return self.task.no_sums(self.device)
            return coupling.sums(held, self.count, spans_of(self.count, self.world))
