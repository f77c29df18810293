"""The 2D-torus all-reduce on c10d process groups, in Python.

Mikami et al. 2018 ("Massively Distributed SGD", section 3.2): reduce-scatter along the rows,
all-reduce along the columns, all-gather along the rows. Here the columns' all-reduce is again a
reduce-scatter and an all-gather. Each of the four exchanges is direct: a rank sends every peer its
shard. It adds the received shards once, in float64 and in the order of ranks, and rounds once. So
every rank ends with the same bits. For a message of S bytes on Y x X ranks, a rank sends 2 (X-1) +
2 (Y-1) messages, with 2 (X-1)/X S bytes on its row and 2 (Y-1)/Y S/X bytes on its column.

A message is cut into chunks that go through four stages, one for each exchange. A stage begins a
chunk as soon as the previous stage has finished it. So rows and columns work at the same time,
across messages too. ``csrc/comm/torus.cpp`` is the same schedule in C++.
"""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from largebatch._ops import sum_shards
from largebatch.distributed.pending import Pending
from largebatch.distributed.statistics import record
from largebatch.distributed.topology import Topology

STAGES = ("row scatter", "column scatter", "column gather", "row gather")
ABREAST = 2  # chunks in one exchange: more would delay the first, for which another axis waits
TAGS = 2**30  # messages of different stages and chunks never meet


@dataclass
class Message:
    """A tensor being reduced in place; ``flat`` is one-dimensional and contiguous."""

    flat: Tensor
    wire: torch.dtype
    divisor: int
    work: Pending
    squares: Tensor | None
    left: int
    target: Tensor | None = None


@dataclass
class Chunk:
    """A stretch of a message, padded to whole shards, with its pending sends and receives."""

    message: Message
    number: int
    count: int
    start: int
    stop: int
    tag: int = 0
    data: Tensor = field(default_factory=lambda: torch.empty(0))
    received: list[Tensor] = field(default_factory=list)
    wired: Tensor = field(default_factory=lambda: torch.empty(0))
    waiting: list[tuple[int, Any]] = field(default_factory=list)


def cut(numel: int, chunks: int, unit: int) -> list[tuple[int, int]]:
    """Cut ``numel`` elements into at most ``chunks`` stretches of whole ``unit``s but the last."""
    if numel == 0:
        return []
    size = -(-numel // (chunks * unit)) * unit
    return [(start, min(start + size, numel)) for start in range(0, numel, size)]


def sent(topology: Topology, rank: int, numel: int, chunks: int, size: int, wire: int) -> tuple[
    int, int
]:  # fmt: skip
    """Return the number of messages and bytes that ``rank`` sends in the schedule.

    Args:
        topology: the grid.
        rank: the sending rank.
        numel: elements of the message.
        chunks: number of chunks asked for.
        size: bytes of an element.
        wire: bytes of an element on the columns.
    """
    x, y, place = topology.columns, topology.rows, topology.place(rank)
    steps = total = 0
    for start, stop in cut(numel, chunks, x * y):
        shard = -(-(stop - start) // (x * y)) * y
        if not place.column:
            steps, total = steps + x, total + x * shard * size
            continue
        row = x - 1 + len(place.row) - 1
        steps += row + 2 * (y - 1)
        total += row * shard * size + 2 * (y - 1) * (shard // y) * wire
    return steps, total


class Torus:
    """The schedule over one pair of process groups.

    Args:
        topology: the grid.
        rank: rank of this process.
        row, column: groups of the ranks of :class:`Place`, in its order; ``column`` is None for a
            rank of the remainder.
        device: device of the tensors.
    """

    def __init__(
        self,
        topology: Topology,
        rank: int,
        row: dist.ProcessGroup,
        column: dist.ProcessGroup | None,
        device: torch.device,
    ) -> None:
        self._rank = rank
        self._x, self._y = topology.columns, topology.rows
        self._place = topology.place(rank)
        self._row, self._column = row, column
        self._me = self._place.column.index(rank) if column is not None else -1
        self._device = device
        self._sequence = 0
        self._error: Exception | None = None
        self._slots = [threading.Semaphore(ABREAST) for _ in STAGES]
        self._steps: list[Callable[[Chunk], None]] = [
            self._scatter_rows,
            self._scatter_columns,
            self._gather_columns,
            self._gather_rows,
            self._finish,
        ]
        self._inboxes: list[queue.SimpleQueue[Chunk | None]] = []
        self._threads: list[threading.Thread] = []
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def all_reduce(
        self,
        flat: Tensor,
        *,
        chunks: int,
        wire: torch.dtype,
        divisor: int = 1,
        squares: Tensor | None = None,
        target: Tensor | None = None,
    ) -> Pending:
        """Begin to sum ``flat`` over all ranks in place; all ranks must call in the same order.

        Args:
            flat: one-dimensional contiguous tensor.
            chunks: number of chunks; the same on all ranks, like ``wire`` and ``divisor``.
            wire: dtype on the columns, ``flat``'s own or a narrower one.
            divisor: 1 for a sum, the number of ranks for a mean.
            squares: two float64 numbers to which this rank's parts of two squared norms are added:
                of all ranks' tensors before the sum, and of the result.
            target: a tensor with the same number of elements in another memory order, which also
                gets the result.
        """
        pieces = cut(flat.numel(), chunks, self._x * self._y)
        work = Pending([flat])
        record("torus", calls=1)
        message = Message(flat, wire, divisor, work, squares, len(pieces), target)
        if self._error is not None:
            work.fail(self._error)
        elif not pieces:
            self._complete(message)
        else:
            parts = [Chunk(message, i, len(pieces), *piece) for i, piece in enumerate(pieces)]
            for part in parts:
                part.tag = self._sequence % TAGS
                self._sequence += 1
            with torch.autograd.profiler.record_function("torus:all_reduce"):  # its beginning
                self._carry(parts)
        return work

    def _carry(self, chunks: Sequence[Chunk]) -> None:
        if self._stream is None:
            if not self._inboxes:
                self._start()
            for chunk in chunks:
                self._inboxes[0].put(chunk)
            return
        # On CUDA nothing blocks the host, and every rank must launch in one order: no threads.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        for chunk, step in _ticks(chunks, self._steps):
            self._advance(chunk, step)

    def _start(self) -> None:
        self._inboxes = [queue.SimpleQueue() for _ in self._steps]
        for stage, step in enumerate(self._steps):
            name = f"torus {(*STAGES, 'end')[stage]}"
            served = threading.Thread(
                target=self._serve, args=(stage, step), name=name, daemon=True
            )
            served.start()
            self._threads.append(served)

    def _serve(self, stage: int, step: Callable[[Chunk], None]) -> None:
        while (chunk := self._inboxes[stage].get()) is not None:
            last = stage == len(STAGES)
            if not last:
                self._slots[stage].acquire()
            self._advance(chunk, step)
            if stage > 0:
                self._slots[stage - 1].release()
            if not last:
                self._inboxes[stage + 1].put(chunk)
            del chunk  # its buffers are free while this thread waits for the next one
        if stage < len(STAGES):
            self._inboxes[stage + 1].put(None)

    def close(self) -> bool:
        """Wait until all reductions begun are done, and end the threads.

        Failed reductions are not waited for, since their threads may still wait for a dead rank.
        Called on one of the threads (where a callback may drop the owner), this does nothing and
        returns False.
        """
        if threading.current_thread() in self._threads:
            return False
        if self._inboxes:
            self._inboxes[0].put(None)
        for thread in self._threads if self._error is None else ():
            thread.join()
        return True

    def _advance(self, chunk: Chunk, step: Callable[[Chunk], None]) -> None:
        try:
            if self._error is not None:
                raise self._error
            stream: AbstractContextManager[Any] = (
                nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
            )
            with stream, torch.no_grad():
                step(chunk)
        except Exception as error:  # a thread must hand every error to the one that waits
            if self._error is None:
                self._error = error
            chunk.waiting.clear()
            chunk.message.work.fail(self._error)

    def _scatter_rows(self, chunk: Chunk) -> None:
        flat, length = chunk.message.flat, chunk.stop - chunk.start
        unit = self._x * self._y
        padded = -(-length // unit) * unit
        if padded == length:
            chunk.data = flat[chunk.start : chunk.stop].view(self._x, -1)
        else:
            data = flat.new_zeros(padded)
            data[:length] = flat[chunk.start : chunk.stop]
            chunk.data = data.view(self._x, -1)
        position, row = self._place.position, len(self._place.row)
        sends = [(peer, chunk.data[peer]) for peer in _others(self._x, position)]
        receives = []
        if self._column is not None:
            chunk.received = list(chunk.data.new_empty(row, chunk.data.shape[1]))
            chunk.received[position] = chunk.data[position]
            receives = [(peer, chunk.received[peer]) for peer in _others(row, position)]
        self._post(chunk, 0, self._row, sends, receives)

    def _scatter_columns(self, chunk: Chunk) -> None:
        self._wait(chunk, 0)
        if self._column is None:
            return
        message, own = chunk.message, chunk.data[self._place.position]
        narrow = message.wire != own.dtype
        chunk.wired = torch.empty_like(own, dtype=message.wire) if narrow else own
        # Divided before a narrow wire: sums of many ranks could exceed float16.
        divisor = message.divisor if narrow else 1
        squares = message.squares is not None
        found = sum_shards(chunk.received, chunk.wired, divisor=divisor, squares=squares)
        if message.squares is not None:
            message.squares[0] += found[0]
        pieces = chunk.wired.view(self._y, -1)
        chunk.received = list(torch.empty_like(pieces))
        chunk.received[self._me] = pieces[self._me]
        peers = _others(self._y, self._me)
        sends = [(p, pieces[p]) for p in peers]
        self._post(chunk, 1, self._column, sends, [(p, chunk.received[p]) for p in peers])

    def _gather_columns(self, chunk: Chunk) -> None:
        self._wait(chunk, 1)
        if self._column is None:
            return
        message, pieces = chunk.message, chunk.wired.view(self._y, -1)
        divisor = message.divisor if message.wire == chunk.data.dtype else 1
        mine = pieces[self._me]
        squares = message.squares is not None
        found = sum_shards(chunk.received, mine, divisor=divisor, squares=squares)
        if message.squares is not None:
            message.squares[1] += found[1]
        chunk.received = []
        peers = _others(self._y, self._me)
        receives = [(p, pieces[p]) for p in peers]
        self._post(chunk, 2, self._column, [(p, mine) for p in peers], receives)

    def _gather_rows(self, chunk: Chunk) -> None:
        self._wait(chunk, 2)
        position, sends = self._place.position, []
        if self._column is not None:
            own = chunk.data[position]
            if chunk.wired.dtype != own.dtype:
                own.copy_(chunk.wired)
            sends = [(peer, own) for peer in _others(len(self._place.row), position)]
        receives = [(peer, chunk.data[peer]) for peer in _others(self._x, position)]
        self._post(chunk, 3, self._row, sends, receives)

    def _finish(self, chunk: Chunk) -> None:
        self._wait(chunk, 3)
        message, length = chunk.message, chunk.stop - chunk.start
        if chunk.data.numel() != length:
            message.flat[chunk.start : chunk.stop] = chunk.data.view(-1)[:length]
        message.left -= 1
        if message.left == 0:
            self._complete(message)

    def _complete(self, message: Message) -> None:
        if message.target is not None:
            message.target.copy_(message.flat.view(message.target.shape))
        message.work.succeed()

    def _post(
        self,
        chunk: Chunk,
        stage: int,
        group: dist.ProcessGroup,
        sends: list[tuple[int, Tensor]],
        receives: list[tuple[int, Tensor]],
    ) -> None:
        """Begin one exchange of ``chunk``; peers are places in ``group``."""
        ranks = self._place.row if group is self._row else self._place.column
        tag = chunk.tag * len(STAGES) % TAGS + stage
        record("torus", steps=len(sends), bytes=sum(tensor.nbytes for _, tensor in sends))
        if self._stream is not None and (sends or receives):
            group._start_coalescing(self._device)
        for peer, tensor in receives:
            chunk.waiting.append((ranks[peer], group.recv([tensor], peer, tag)))
        for peer, tensor in sends:
            chunk.waiting.append((ranks[peer], group.send([tensor], peer, tag)))
        if self._stream is not None and chunk.waiting:
            chunk.waiting = [(ranks[0], group._end_coalescing(self._device))]

    def _wait(self, chunk: Chunk, stage: int) -> None:
        for peer, work in chunk.waiting:
            try:
                work.wait()
            except RuntimeError as error:
                # "[file:line] First sentence. Advice ..."
                reason = re.sub(r"^\[[^]]*\] ", "", str(error)).splitlines()[0].split(". ")[0]
                raise RuntimeError(
                    f"torus all-reduce: rank {self._rank} in step {STAGES[stage]!r} with rank"
                    f" {peer}, chunk {chunk.number + 1} of {chunk.count}: {reason}"
                ) from error
        chunk.waiting.clear()


def _others(count: int, me: int) -> list[int]:
    """Return all but ``me`` of the first ``count``, from the next one on.

    Ranks that began with the same peer would wait for its link together.
    """
    return [(me + k) % count for k in range(1, count + 1) if (me + k) % count != me]


def _ticks(
    chunks: Sequence[Chunk], steps: Sequence[Callable[[Chunk], None]]
) -> Iterator[tuple[Chunk, Callable[[Chunk], None]]]:
    """Yield chunk i's step s at tick i + s: the order in which a pipeline fills and drains."""
    for tick in range(len(chunks) + len(steps) - 1):
        for stage, step in enumerate(steps):
            if 0 <= tick - stage < len(chunks):
                yield chunks[tick - stage], step
