"""Measure the links of a topology, and both algorithms on them, in a few seconds at start."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from largebatch.distributed.cost_model import Algorithm, CostModel, Link

if TYPE_CHECKING:
    from largebatch.distributed.all_reduce import AllReduce

SECONDS = 4.0  # of the whole probe; what it has begun it ends
LINK_SECONDS = 0.5  # of one axis
SIZES = (2**12, 2**16, 2**20, 2**22, 2**24)  # bytes of the all-reduces that are timed
ROUNDS = 5


@dataclass(frozen=True)
class Timing:
    """Seconds that an all-reduce of ``bytes`` took, and those that the model expects of it."""

    algorithm: Algorithm
    bytes: int
    seconds: float
    expected: float


class Probe:
    """The measurements of one :class:`AllReduce`; every rank calls alike.

    All ranks see the same times, those of the slowest, and so decide alike how to go on.
    """

    def __init__(self, reduce: AllReduce) -> None:
        self._reduce = reduce
        self._device = reduce.device
        self._start = time.perf_counter()

    def run(self) -> tuple[CostModel, list[Timing]]:
        """Return the model of the links, and the all-reduces timed to check it."""
        topology = self._reduce.topology
        fast = self._link(self._reduce.row, topology.columns)
        slow = self._link(self._reduce.column, topology.rows)
        if topology.hosts > 1:  # the columns of a host share its link
            slow = Link(slow.latency, slow.seconds_per_byte / topology.columns)
        model = CostModel(fast if topology.columns > 1 else slow, slow)
        return model, self._check(model)

    def _link(self, group: dist.ProcessGroup | None, size: int) -> Link:
        """Time a ring's step, on all rings of one axis at once."""
        if size == 1:
            return Link(0.0, 0.0)
        latency = self._median(lambda: self._step(group, size, torch.zeros(1)), 4 * ROUNDS)
        bytes, seconds = 2**14, 0.0
        while seconds < LINK_SECONDS / ROUNDS / 2 and bytes < 2**24:
            bytes *= 4
            message = torch.zeros(bytes // 4, device=self._device)
            step = lambda message=message: self._step(group, size, message)  # noqa: E731
            seconds = self._median(step, ROUNDS)
        return Link(latency, max(seconds - latency, 0.0) / bytes)

    def _step(self, group: dist.ProcessGroup | None, size: int, message: torch.Tensor) -> None:
        """Send to the next of the first ``size`` ranks of ``group``, receive from the one before."""
        rank = group.rank() if group is not None else size
        if group is None or rank >= size:  # a rank of the remainder
            return
        message = message.to(self._device)
        received = torch.empty_like(message)
        together = self._device.type == "cuda"
        if together:
            group._start_coalescing(self._device)
        works = [group.recv([received], (rank - 1) % size, 0)]
        works.append(group.send([message], (rank + 1) % size, 0))
        if together:
            works = [group._end_coalescing(self._device)]
        for work in works:
            work.wait()

    def _check(self, model: CostModel) -> list[Timing]:
        """Time both algorithms on growing messages while there is time."""
        timings: list[Timing] = []
        reduce, wire = self._reduce, self._reduce.preference.wire
        for bytes in SIZES:
            message = torch.zeros(bytes // 4, device=self._device)
            torus = model.choose(bytes, reduce.topology, wire, ("torus",))
            flat = model.time("flat", bytes, reduce.topology)
            if self._spent() + (ROUNDS + 1) * (flat + torus.seconds) > SECONDS:
                break
            chunks = torus.chunks
            runs: dict[Algorithm, Callable[[], object]] = {
                "flat": lambda message=message: reduce.start_flat(message).wait(),
                "torus": lambda message=message, chunks=chunks: reduce.start_torus(
                    message, chunks
                ).wait(),
            }
            for algorithm, run in runs.items():
                run()  # the first opens connections
                expected = flat if algorithm == "flat" else torus.seconds
                timings.append(Timing(algorithm, bytes, self._median(run, ROUNDS), expected))
        return timings

    def _median(self, run: Callable[[], object], rounds: int) -> float:
        """Return the median seconds of ``run``, of the slowest rank in every round."""
        times = []
        self._reduce.flat.barrier().wait()
        for _ in range(rounds):
            start = time.perf_counter()
            run()
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            times.append(time.perf_counter() - start)
        return statistics.median(self._slowest(times))

    def _slowest(self, times: list[float]) -> list[float]:
        found = torch.tensor(times, dtype=torch.float64, device=self._device)
        self._reduce.flat.allreduce([found], dist.ReduceOp.MAX).wait()
        return found.tolist()

    def _spent(self) -> float:
        return self._slowest([time.perf_counter() - self._start])[0]
