"""The plan's steps turned into batches: this rank's share of each, fetched ahead."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from largebatch.data import Batch, EpochOrder, Pipeline, Request
from largebatch.processes import World
from largebatch.schedule import BatchPlan, Step
from largebatch.train.share import (
    Part,
    even_ghost_size,
    ghost_count,
    in_step,
    share,
    share_over_ranks,
)


@dataclass(frozen=True)
class Atoms:
    """What may not be divided: ``size`` samples of a ghost, none below ``minimum`` samples.

    Attributes:
        span: ranks that hold a ghost together, 0 where each is one rank's. ``size`` 0 then means
            what these ranks hold in one forward pass.
    """

    size: int
    minimum: int
    span: int = 0


class Feed:
    """Yields every step of the plan with this rank's micro-batches, in order.

    The order of samples, the division into ghosts and ranks and the pixels are functions of the
    position in the run alone, so that starting in the middle needs no replay.

    Args:
        micro: samples per forward pass; None for the whole share.
        lockstep: whether every rank makes as many passes in a step.
    """

    def __init__(
        self,
        plan: BatchPlan,
        order: EpochOrder,
        pipeline: Pipeline,
        world: World,
        atoms: Atoms,
        micro: int | None,
        lockstep: bool = False,
    ) -> None:
        self.lockstep = lockstep
        self.plan, self.order, self.pipeline = plan, order, pipeline
        self.world, self.atoms, self.micro = world, atoms, micro
        self._hashes: deque[str] = deque()

    def parts(self, step: Step) -> tuple[Part, ...]:
        """Return this rank's forward passes of ``step``."""
        own = self._passes(step, self.world.rank)
        if not self.lockstep:
            return own
        # No rank has more passes than the first.
        return in_step(own, len(self._passes(step, 0)), self.atoms.minimum)

    def _passes(self, step: Step, rank: int) -> tuple[Part, ...]:
        atoms, size = self.atoms, self._ghost_size(step)
        place = (rank, self.world.world_size, atoms.minimum)
        if atoms.span:
            return share_over_ranks(step.size, size, atoms.span, *place)
        return share(step.size, size, self._micro(step), *place)

    def ghosts(self, step: Step) -> int:
        """Return the number of ghosts of ``step`` over all ranks."""
        return ghost_count(step.size, self._ghost_size(step), self.atoms.minimum)

    def _ghost_size(self, step: Step) -> int:
        if self.atoms.size:
            return self.atoms.size
        even = even_ghost_size(step.size, self._micro(step), self.atoms.span, self.world.world_size)
        return max(self.atoms.minimum, even)

    def _micro(self, step: Step) -> int | None:
        micro = self.micro if step.phase.micro in (None, "auto") else step.phase.micro
        assert micro is None or isinstance(micro, int)
        return micro

    def steps(self, samples: int) -> Iterator[tuple[Step, tuple[Part, ...], Iterator[Batch]]]:
        """Walk the steps from ``samples`` on, each with its forward passes and their source."""
        self._hashes.clear()
        batches = iter(self.pipeline.batches(self._requests(samples)))
        try:
            for step in self.plan.steps(samples):
                yield step, self.parts(step), batches
        finally:
            close = getattr(batches, "close", None)
            if close is not None:
                close()

    def again(self, step: Step) -> Iterator[Batch]:
        """Read this rank's samples of a step once more; a walk of :meth:`steps` ends by it."""
        requests = [self._request(step, p, None) for p in self.parts(step) if not p.idle]
        return iter(self.pipeline.batches(requests))

    def take_hash(self) -> str:
        """Return the hash of the sample ids, in order, of the step just taken (rank 0 only)."""
        return self._hashes.popleft()

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
            image_size=step.phase.image_size,
            ghosts=part.sizes,
        )
