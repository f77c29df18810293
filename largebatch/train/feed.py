"""Turn the plan's steps into batches: this rank's share of each step, prefetched."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from largebatch.data import Batch, Order, Reader, Request
from largebatch.processes import World
from largebatch.schedule import BatchPlan, Step
from largebatch.train.atoms import Atoms
from largebatch.train.share import (
    Part,
    even_ghost_size,
    ghost_count,
    in_step,
    share,
    share_over_ranks,
)

Spans: TypeAlias = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Pass:
    """One forward pass of this rank: its part of the step, and the batch.

    Attributes:
        ghosts: sizes of the ghosts that norms take statistics over; None: norms divide by
            themselves.
    """

    part: Part
    batch: Batch
    ghosts: tuple[int, ...] | None


class Share:
    """This rank's share of a step.

    Attributes:
        step: the step, over all ranks.
        ghosts: number of ghosts in the step, over all ranks.
        parts: this rank's forward passes; none if it has no samples.
        most: largest number of passes of any rank.
        spans: returns begin and end of each rank's samples of the step; None if several ranks hold
            a ghost together.
        passes: yields each pass with its batch, as soon as the batch is ready.
    """

    def __init__(
        self,
        step: Step,
        ghosts: int,
        parts: tuple[Part, ...],
        most: int,
        spans: Callable[[], Spans | None],
        passes: Iterator[Pass],
        hashes: deque[str],
    ) -> None:
        self.step, self.ghosts, self.parts, self.passes = step, ghosts, parts, passes
        self.most, self.spans = most, spans
        self._hashes = hashes

    def order_hash(self) -> str:
        """Return the hash of the step's sample ids in order, once, after its passes (rank 0)."""
        return self._hashes.popleft()


class Feed:
    """Yields every step of the plan with this rank's share of it, in order.

    The order of samples, their division into ghosts and ranks, and their random augmentation are
    functions of the position in the run. So starting in the middle needs no replay.

    Args:
        fitting: samples of the largest forward pass that fits into memory, for each range of
            samples in whose phases ``micro`` is ``auto``.
        lockstep: whether every rank must make the same number of passes in a step.
    """

    def __init__(
        self,
        plan: BatchPlan,
        order: Order,
        reader: Reader,
        world: World,
        atoms: Atoms,
        fitting: dict[int | None, int],
        lockstep: bool = False,
    ) -> None:
        self.lockstep = lockstep
        self.plan, self.order, self.reader = plan, order, reader
        self.world, self.atoms, self.fitting = world, atoms, fitting
        self._hashes: deque[str] = deque()

    def parts(self, step: Step) -> tuple[Part, ...]:
        """Return this rank's forward passes of ``step``."""
        own = self.parts_of(step, self.world.rank)
        if not self.lockstep:
            return own
        return in_step(own, self.most(step), self.atoms.minimum)

    def most(self, step: Step) -> int:
        """Return the largest number of passes of any rank, which is that of the first rank."""
        return len(self.parts_of(step, 0))

    def parts_of(self, step: Step, rank: int) -> tuple[Part, ...]:
        """Return the forward passes of a rank, without idle ones."""
        atoms, size = self.atoms, self._ghost_size(step)
        place = (rank, self.world.world_size, atoms.minimum)
        if atoms.span:
            return share_over_ranks(step.size, size, atoms.span, *place)
        return share(step.size, size, self.micro(step), *place)

    def spans(self, step: Step) -> Spans | None:
        """Return begin and end of each rank's samples; None if they are not contiguous."""
        if self.atoms.span:
            return None
        shares = (self.parts_of(step, rank) for rank in range(self.world.world_size))
        return tuple((parts[0].start, parts[-1].stop) if parts else (0, 0) for parts in shares)

    def ghosts(self, step: Step) -> int:
        """Return the number of ghosts of ``step`` over all ranks."""
        return ghost_count(step.size, self._ghost_size(step), self.atoms.minimum)

    def _ghost_size(self, step: Step) -> int:
        if self.atoms.size:
            return self.atoms.size
        even = even_ghost_size(step.size, self.micro(step), self.atoms.span, self.world.world_size)
        return max(self.atoms.minimum, even)

    def micro(self, step: Step) -> int | None:
        """Return the samples of a rank's forward pass; None: its whole share."""
        micro = step.phase.micro
        return self.fitting[step.phase.extent] if micro == "auto" else micro

    def shares(self, samples: int) -> Iterator[Share]:
        """Yield the steps from ``samples`` on; consume a step's passes before the next step."""
        self._hashes.clear()
        batches = iter(self.reader.read(self._requests(samples)))
        try:
            for step in self.plan.steps(samples):
                parts = self.parts(step)
                passes = (self._pass(part, next(batches)) for part in parts)
                most = self.most(step)
                spans = partial(self.spans, step)
                yield Share(step, self.ghosts(step), parts, most, spans, passes, self._hashes)
        finally:
            close = getattr(batches, "close", None)
            if close is not None:
                close()

    def again(self, step: Step) -> Iterator[Batch]:
        """Read this rank's samples of a step again; this ends an iteration of :meth:`shares`."""
        requests = [self._request(step, part, None) for part in self.parts(step) if not part.idle]
        return iter(self.reader.read(requests))

    def _pass(self, part: Part, batch: Batch) -> Pass:
        ghosts = _joined(batch.ghosts, self.atoms.minimum) if self.atoms.of_norms else None
        return Pass(part, batch, ghosts)

    def _requests(self, samples: int) -> Iterator[Request]:
        for step in self.plan.steps(samples):
            if self.world.is_main:
                # Rank 0 hashes the ids of all ranks: the hash does not depend on their number.
                ids = self.order.indices(step.epoch, step.position, step.position + step.size)
                self._hashes.append(hashlib.blake2b(ids.tobytes(), digest_size=8).hexdigest())
            for part in self.parts(step):
                own = ids[part.start : part.stop] if self.world.is_main else None
                yield self._request(step, part, own)

    def _request(self, step: Step, part: Part, ids: NDArray[np.int64] | None) -> Request:
        begin, end = step.position + part.start, step.position + part.stop
        return Request(
            epoch=step.epoch,
            indices=self.order.indices(step.epoch, begin, end) if ids is None else ids,
            positions=np.arange(begin, end),
            extent=step.phase.extent,
            ghosts=part.sizes,
        )


def _joined(ghosts: tuple[int, ...], minimum: int) -> tuple[int, ...]:
    """Let a ghost that lost samples, and has too few left for statistics, join one beside it."""
    if all(size >= minimum for size in ghosts):
        return ghosts
    whole: list[int] = []
    for size in ghosts:
        if whole and (size < minimum or whole[-1] < minimum):
            whole[-1] += size
        else:
            whole.append(size)
    return tuple(whole)
