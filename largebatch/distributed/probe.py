"""Measure the links of a topology, and both algorithms on them, in a few seconds at start."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from largebatch.distributed.algorithms import Algorithms
from largebatch.distributed.cost_model import Algorithm, CostModel, Link

SECONDS = 4.0  # of the whole probe; what it has begun it ends
LINK_SECONDS = 0.5  # of one axis
SIZES = (2**12, 2**16, 2**19, 2**22, 2**24)  # bytes of the all-reduces that are timed
ROUNDS = 4
CHUNKS = 16  # of a pipeline that is timed


@dataclass(frozen=True)
class Timing:
    """Seconds that an all-reduce of ``bytes`` took, and those that the model expects of it."""

    algorithm: Algorithm
    bytes: int
    seconds: float
    expected: float


class Probe:
    """The measurements of one group's :class:`Algorithms`; every rank calls alike.

    All ranks see the same times, those of the slowest, and so decide alike how to go on.
    """

    def __init__(self, algorithms: Algorithms) -> None:
        self._algorithms = algorithms
        self._device = algorithms.device
        self._start = time.perf_counter()

    def run(self) -> tuple[CostModel, list[Timing]]:
        """Return the model of the links, and the all-reduces timed to check it."""
        topology = self._algorithms.topology
        fast = self._link(self._algorithms.row, topology.columns)
        slow = self._link(self._algorithms.column, topology.rows)
        if topology.hosts > 1:  # the columns of a host share its link
            slow = Link(slow.latency, slow.seconds_per_byte / topology.columns)
        chunk = self._chunk() if self._device.type == "cpu" else None
        model = CostModel(fast if topology.columns > 1 else slow, slow, chunk=chunk)
        return model, self._check(model)

    def _chunk(self) -> float:
        """Time the interval of a pipeline's chunks that have hardly any bytes."""
        message = torch.zeros(CHUNKS * self._algorithms.world_size)
        one, many = (
            min(
                self._times(
                    lambda count=count: self._algorithms.start_torus(message, count).wait(),  # type: ignore[misc]
                    ROUNDS,
                )[1:]
            )
            for count in (1, CHUNKS)
        )
        return max(many - one, 0.0) / (CHUNKS - 1)

    def _link(self, group: dist.ProcessGroup | None, size: int) -> Link:
        """Time a ring's step, on all rings of one axis at once: its best time is the link's."""
        if size == 1:
            return Link(0.0, 0.0)
        nothing = torch.zeros(1, device=self._device)
        latency = min(self._times(lambda: self._step(group, size, nothing), 4 * ROUNDS))
        message, seconds = nothing, 0.0
        # Until the bytes, and not the waking of processes, are what takes the time.
        while seconds < max(10 * latency, LINK_SECONDS / 20) and message.nbytes < 2**24:
            message = torch.zeros(max(2**14, message.numel() * 4), device=self._device)
            step = lambda message=message: self._step(group, size, message)  # noqa: E731
            seconds = min(self._times(step, ROUNDS))
            if self._spent() > SECONDS / 3:
                break
        return Link(latency, max(seconds - latency, 0.0) / message.nbytes)

    def _step(self, group: dist.ProcessGroup | None, size: int, message: torch.Tensor) -> None:
        """Send to the next of the first ``size`` ranks of ``group``; receive from the last."""
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
        """Time both algorithms in turn on growing messages while there is time."""
        timings: list[Timing] = []
        algorithms, wire = self._algorithms, self._algorithms.preference.wire
        factor = 1.0
        for bytes in SIZES:
            message = torch.zeros(bytes // 4, device=self._device)
            torus = model.choose(bytes, algorithms.topology, wire, ("torus",))
            flat = model.time("flat", bytes, algorithms.topology)
            both = factor * (flat + torus.seconds)
            # A large message says much in few rounds.
            rounds = ROUNDS if both < SECONDS / 40 else 2
            if timings and self._spent() + (rounds + 1) * both > SECONDS:
                break
            times: dict[Algorithm, list[float]] = {"flat": [], "torus": []}
            for _ in range(rounds + 1):
                times["flat"] += self._times(lambda: algorithms.start_flat(message).wait(), 1)  # noqa: B023
                times["torus"] += self._times(
                    lambda: algorithms.start_torus(message, torus.chunks).wait(),  # noqa: B023
                    1,
                )
            modelled: dict[Algorithm, float] = {"flat": flat, "torus": torus.seconds}
            for algorithm, expected in modelled.items():
                # The first opens connections and touches memory; of two, one may have been held up.
                seconds = statistics.median_low(times[algorithm][1:])
                timings.append(Timing(algorithm, bytes, seconds, expected))
            factor = sum(timing.seconds for timing in timings[-2:]) / max(
                flat + torus.seconds, 1e-9
            )
        return timings

    def _times(self, run: Callable[[], object], rounds: int) -> list[float]:
        """Return the seconds of each of ``rounds`` runs, those of the slowest rank."""
        times = []
        self._algorithms.flat.barrier().wait()
        for _ in range(rounds):
            start = time.perf_counter()
            run()
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            times.append(time.perf_counter() - start)
        return self._slowest(times)

    def _slowest(self, times: list[float]) -> list[float]:
        found = torch.tensor(times, dtype=torch.float64, device=self._device)
        self._algorithms.flat.allreduce([found], dist.ReduceOp.MAX).wait()
        return found.tolist()

    def _spent(self) -> float:
        return self._slowest([time.perf_counter() - self._start])[0]
