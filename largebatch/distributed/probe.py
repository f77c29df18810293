"""Measure the links of a topology, and time both algorithms, in a few seconds at start."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist

from largebatch.distributed.algorithms import Algorithms
from largebatch.distributed.cost_model import Algorithm, CostModel, Link

SECONDS = 4.4  # of the whole probe; what it has begun it ends
LINKS_SHARE = 0.35  # of it for links and chunks; the rest is for whole all-reduces
ENOUGH_SECONDS = 0.05  # of a message that tells a bandwidth: long beside what ranks start apart
MOST_BYTES = 2**24  # of such a message
SIZES = (2**12, 2**16, 2**19, 2**22, 2**24)  # bytes of the all-reduces that are timed
ROUNDS = 4
CHUNKS = 16  # of a pipeline that is timed


@dataclass(frozen=True)
class Timing:
    """Measured seconds of an all-reduce of ``bytes``, and the seconds that the model expects."""

    algorithm: Algorithm
    bytes: int
    seconds: float
    expected: float


@dataclass
class _Best:
    """The best time of something that is run ``rounds`` times in every turn."""

    run: Callable[[], object]
    rounds: int = 1
    seconds: float = math.inf


class _Axis:
    """A step of the rings of one axis, all at once: without bytes, and with enough of them."""

    def __init__(self, step: Callable[[torch.Tensor], None], device: torch.device) -> None:
        self._step = step
        self._tensor = torch.zeros(1, device=device)
        self.nothing = _Best(partial(step, self._tensor), ROUNDS)
        self.message = self.nothing

    def grow(self) -> bool:
        """Take a larger message where the bytes do not take the time; return whether it did."""
        enough = max(10 * self.nothing.seconds, ENOUGH_SECONDS)
        if self.message.seconds >= enough or self._tensor.nbytes >= MOST_BYTES:
            return False
        self._tensor = self._tensor.new_zeros(max(2**14, 2 * self._tensor.numel()))
        self.message = _Best(partial(self._step, self._tensor))
        return True

    def link(self) -> Link:
        """Return what the best times say of the link."""
        added = max(self.message.seconds - self.nothing.seconds, 0.0)
        return Link(self.nothing.seconds, added / self._tensor.nbytes)


class Probe:
    """The measurements of one group's :class:`Algorithms`; every rank must call alike.

    All ranks get the times of the slowest rank, and so make the same decisions.
    """

    def __init__(self, algorithms: Algorithms) -> None:
        self._algorithms = algorithms
        self._device = algorithms.device
        self._start = time.perf_counter()
        topology = algorithms.topology
        self._rows = self._axis(algorithms.row, topology.columns)
        self._columns = self._axis(algorithms.column, topology.rows)
        on_host = algorithms.device.type == "cpu"
        self._pipelines = [self._pipeline(count) for count in (1, CHUNKS)] if on_host else []

    def run(self) -> tuple[CostModel, list[Timing]]:
        """Return the model of the links, and the all-reduces timed to check it."""
        # What else the machine does holds up runs that follow each other, all of them: in turns,
        # each gets another chance later.
        self._turn()
        self._turn()
        while self._spent() < LINKS_SHARE * SECONDS:
            self._turn()
        timed = self._check(self._model())
        # Ranks that have just started find their links slower than they will be: what is left of
        # the time gives more chances.
        spent, turn = self._spent(), 0.0
        while spent + turn < SECONDS:
            self._turn()
            turn = self._spent() - spent
            spent += turn
        model, topology = self._model(), self._algorithms.topology
        wire = self._algorithms.preference.wire
        return model, [
            Timing(name, bytes, seconds, model.time(name, bytes, topology, chunks, wire))
            for name, bytes, chunks, seconds in timed
        ]

    def _turn(self) -> None:
        for axis in (self._rows, self._columns):
            if axis:
                self._improve(axis.nothing)
                self._improve(axis.message)
                while axis.grow():
                    self._improve(axis.message)
        for pipeline in self._pipelines:
            self._improve(pipeline)

    def _model(self) -> CostModel:
        """Return the model of the best times so far."""
        topology = self._algorithms.topology
        slow = self._columns.link() if self._columns else Link(0.0, 0.0)
        if topology.hosts > 1:  # the columns of a host share its link
            slow = Link(slow.latency, slow.seconds_per_byte / topology.columns)
        fast = self._rows.link() if self._rows else slow
        if not self._pipelines:
            return CostModel(fast, slow)
        one, many = self._pipelines
        return CostModel(fast, slow, chunk=max(many.seconds - one.seconds, 0.0) / (CHUNKS - 1))

    def _axis(self, group: dist.ProcessGroup | None, size: int) -> _Axis | None:
        """Return what to time of one axis; None where it has no steps."""
        return _Axis(partial(self._step, group, size), self._device) if size > 1 else None

    def _pipeline(self, chunks: int) -> _Best:
        """Return an all-reduce of chunks that have hardly any bytes."""
        message = torch.zeros(CHUNKS * self._algorithms.world_size, device=self._device)
        return _Best(lambda: self._algorithms.start_torus(message, chunks).wait())

    def _improve(self, best: _Best) -> None:
        best.seconds = min(best.seconds, *self._times(best.run, best.rounds))

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

    def _check(self, model: CostModel) -> list[tuple[Algorithm, int, int, float]]:
        """Time both algorithms in turn on growing messages while there is time.

        Returns:
            each one's name, bytes, chunks and seconds.
        """
        timed: list[tuple[Algorithm, int, int, float]] = []
        algorithms, wire = self._algorithms, self._algorithms.preference.wire
        factor = 1.0
        for bytes in SIZES:
            message = torch.zeros(bytes // 4, device=self._device)
            torus = model.choose(bytes, algorithms.topology, wire, ("torus",))
            expected = model.time("flat", bytes, algorithms.topology) + torus.seconds
            both = factor * expected
            # A large message says much in few rounds.
            rounds = ROUNDS if both < SECONDS / 40 else 2
            if timed and self._spent() + (rounds + 1) * both > SECONDS:
                break
            times: dict[Algorithm, list[float]] = {"flat": [], "torus": []}
            for _ in range(rounds + 1):
                times["flat"] += self._times(lambda: algorithms.start_flat(message).wait(), 1)  # noqa: B023
                times["torus"] += self._times(
                    lambda: algorithms.start_torus(message, torus.chunks).wait(),  # noqa: B023
                    1,
                )
            # The first opens connections and touches memory; of two, one may have been held up.
            seconds = {name: statistics.median_low(found[1:]) for name, found in times.items()}
            timed.append(("flat", bytes, 1, seconds["flat"]))
            timed.append(("torus", bytes, torus.chunks, seconds["torus"]))
            factor = sum(seconds.values()) / max(expected, 1e-9)
        return timed

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
