"""The time of an all-reduce by the alpha-beta model (Hockney 1994), one formula per algorithm.

Torus and mesh differ by one launch: both send the same bytes in the same number of steps; Ying's
mesh consists of two scatters and two gathers. The pipeline overlaps chunk i on the columns with
chunk i+1 on the rows, so only the slower axis limits it. If an axis carries several chunks at once,
they share its latency too, and the processor time per chunk is a limit as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from largebatch._errors import UserError, nearest
from largebatch.distributed.grid import Shape

Algorithm = Literal["flat", "hierarchical", "mesh", "torus"]
Wire = Literal["fp32", "bf16", "fp16"]

ALGORITHMS: tuple[Algorithm, ...] = ("flat", "hierarchical", "mesh", "torus")
WIRE_SHARE: Mapping[Wire, float] = {"fp32": 1.0, "bf16": 0.5, "fp16": 0.5}
CHUNKS = (1, 2, 4, 8, 16, 32, 64)
# Of counts that differ by less the fewest chunks win: links are measured with an error, and too
# many chunks cost processors more than too few cost the link.
AS_FAST = 1.003

ALL_REDUCE_FORMULAS = """\
all-reduce of S bytes over Y rows of X ranks, rows within hosts, N = X Y; a_f, b_f: latency and
  seconds a byte of the link within a host; a_s, b_s: those of a host's link, which its ranks share:
  X columns that send S/X each at once take as long as one sender of S; g: seconds to add a byte;
  L: to launch a collective; w: the wire's share of fp32 (1, or 1/2 for bf16 and fp16); a_r, b_r: of
  a ring over several hosts: the mean of its hops' latencies, the slowest of its links
flat ring        L + 2(N-1) (a_r + S/N b_r) + (N-1)/N S g
hierarchical     3L + 4(X-1) (a_f + S/X b_f) + 2(Y-1) (a_r + S/Y b_r w)
                 + ((X-1)/X + (Y-1)/Y) S g                                           (Jia 2018)
rows             R(S) = 2L + 2(X-1) (a_f + S/X b_f) + (X-1)/X S g
columns          C(S) = L + 2(Y-1) (a_r + S/Y b_r w) + (Y-1)/Y S/X g; low precision: 2L, since an
                 all-to-all of shards, a sum in fp32 and an all-gather replace the ring
torus, serial    R(S) + C(S)                                                      (Mikami 2018)
2-D mesh         R(S) + C(S) + L: two reduce-scatters, two all-gathers              (Ying 2018)
torus, c chunks  R(S/c) + C(S/c) + (c-1) I, the interval between two chunks: max(R(S/c), C(S/c))
                 on a GPU's streams; on hosts max(p + R(S/c), C(S/c)) without latencies, where p is
                 what processors do for a chunk of no bytes
rows over H > 1  R with a_r, b_r in place of a_f, b_f; in C a host's link carries the columns of its
hosts            X/H ranks, S/H. Both axes use that link, as where a host holds several rows:
                 I = R(S/c) + C(S/c)"""


@dataclass(frozen=True)
class Link:
    """One kind of link.

    Args:
        latency: alpha, seconds of a message of zero bytes.
        seconds_per_byte: beta, the reciprocal of the bandwidth in bytes/s, of one direction.
    """

    latency: float
    seconds_per_byte: float


@dataclass(frozen=True)
class Traffic:
    """Bytes that a rank sends along its row and along its column."""

    row: float
    column: float

    @property
    def total(self) -> float:
        return self.row + self.column


@dataclass(frozen=True)
class Choice:
    """The algorithm for a message, and the seconds that the model expects."""

    algorithm: str
    chunks: int
    wire: Wire
    seconds: float

    def __str__(self) -> str:
        chunks = f", {self.chunks} chunks" if self.chunks > 1 else ""
        wire = f", {self.wire} between hosts" if self.wire != "fp32" else ""
        return f"{self.algorithm}{chunks}{wire}: {1e3 * self.seconds:.3g} ms"


@dataclass(frozen=True)
class CostModel:
    """The seconds, steps and bytes of an all-reduce, by :data:`ALL_REDUCE_FORMULAS`.

    Args:
        fast: the link between two ranks of one host, while all ranks use their links.
        slow: a host's link to the others, shared by its ranks.
        reduction: seconds that a rank takes to add one byte of fp32; zero if ``fast`` was measured
            on collectives that add.
        launch: fixed seconds of every collective.
        chunk: seconds between chunks of zero bytes if an axis carries several at once; None if an
            axis carries one, as a GPU's stream does.
    """

    fast: Link
    slow: Link
    reduction: float = 0.0
    launch: float = 0.0
    chunk: float | None = None

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> CostModel:
        """Rebuild a model from its ``dataclasses.asdict`` form."""
        links = {name: Link(**values[name]) for name in ("fast", "slow")}
        return cls(**{**values, **links})

    def time(
        self,
        algorithm: Algorithm,
        bytes: float,
        topology: Shape,
        chunks: int = 1,
        wire: Wire = "fp32",
    ) -> float:
        """Return the seconds that reducing ``bytes`` bytes of fp32 takes.

        Args:
            algorithm: one of ``ALGORITHMS``.
            bytes: size of the message, as fp32.
            topology: the grid of ``rows`` x ``columns``. Ranks outside of the grid first send to a
                neighbour and get the result from the neighbour at the end, both on the fast link.
            chunks: number of chunks of the torus; more than one pipelines the axes.
            wire: number format on the slow axis; the flat ring has no axes and stays in fp32.

        Raises:
            UserError: an unknown algorithm or wire, or no chunk.
        """
        _check(algorithm, chunks, wire)
        if topology.world_size == 1:
            return 0.0
        if algorithm == "flat":
            return self._flat(bytes, topology)
        rest = topology.world_size - topology.rows * topology.columns
        fold = 2 * (self.launch + self.fast.latency + bytes * self.fast.seconds_per_byte)
        seconds = fold + bytes * self.reduction if rest else 0.0
        if algorithm == "hierarchical":
            return seconds + self._hierarchical(bytes, topology, wire)
        part = bytes / chunks
        row, column = self.row_time(part, topology), self.column_time(part, topology, wire)
        if algorithm == "mesh":
            column += self.launch if topology.rows > 1 and wire == "fp32" else 0.0
            return seconds + chunks * (row + column)
        shared = topology.row_hosts > 1 or topology.rows > topology.hosts
        interval = row + column if shared else max(row, column)
        if self.chunk is not None:
            free = replace(
                self,
                fast=Link(0.0, self.fast.seconds_per_byte),
                slow=Link(0.0, self.slow.seconds_per_byte),
            )
            inside = self.chunk + free.row_time(part, topology)
            interval = max(inside, free.column_time(part, topology, wire))
        return seconds + row + column + (chunks - 1) * interval

    def row_time(self, bytes: float, topology: Shape) -> float:
        """Return the seconds of a torus' reduce-scatter and all-gather along the rows."""
        ranks = topology.columns
        if ranks == 1:
            return 0.0
        ring = self._ring(ranks, topology.row_hosts if topology.row_hosts > 1 else 0)
        step = ring.latency + bytes / ranks * ring.seconds_per_byte
        add = (ranks - 1) / ranks * bytes * self.reduction
        return 2 * self.launch + 2 * (ranks - 1) * step + add

    def column_time(self, bytes: float, topology: Shape, wire: Wire = "fp32") -> float:
        """Return the seconds of a torus' all-reduce along its columns, all at once.

        Args:
            bytes: bytes of the whole message; a column has ``bytes / columns``.
            topology: the grid.
            wire: number format of the numbers sent.
        """
        rows = topology.rows
        if rows == 1:
            return 0.0
        several = topology.hosts > 1
        ring = self._ring(rows, min(rows, topology.hosts) if several else 0)
        # On one host every column has links of its own; a host's link carries its columns' bytes.
        load = bytes / (topology.row_hosts if several else topology.columns)
        step = ring.latency + load / rows * ring.seconds_per_byte * WIRE_SHARE[wire]
        launches = 1 if wire == "fp32" else 2
        add = (rows - 1) / rows * bytes / topology.columns * self.reduction
        return launches * self.launch + 2 * (rows - 1) * step + add

    def steps(self, algorithm: Algorithm, topology: Shape, chunks: int = 1) -> int:
        """Return the number of successive sends of a rank for one message.

        A rank outside of the grid adds one step in and one out.
        """
        _check(algorithm, chunks, "fp32")
        rows, columns, ranks = topology.rows, topology.columns, topology.world_size
        if algorithm == "flat":
            return 2 * (ranks - 1)
        fold = 2 if ranks > rows * columns else 0
        if algorithm == "hierarchical":
            return fold + 4 * (columns - 1) + 2 * (rows - 1)
        return fold + chunks * (2 * (columns - 1) + 2 * (rows - 1))

    def bytes_per_rank(
        self, algorithm: Algorithm, bytes: float, topology: Shape, wire: Wire = "fp32"
    ) -> Traffic:
        """Return the bytes that a rank of the grid sends, exact if the grid divides the message.

        For ``hierarchical`` this is a host's first rank, which sends the most. A flat ring has one
        axis: its bytes count as the row's on one host, else as the column's.
        """
        _check(algorithm, 1, wire)
        rows, columns, ranks = topology.rows, topology.columns, topology.world_size
        if algorithm == "flat":
            sent = 2 * (ranks - 1) / ranks * bytes
            return Traffic(0.0, sent) if topology.hosts > 1 else Traffic(sent, 0.0)
        row = 2 * (columns - 1) / columns * bytes
        column = 2 * (rows - 1) / rows * bytes * WIRE_SHARE[wire]
        if algorithm == "hierarchical":
            return Traffic(row, column)
        return Traffic(row, column / columns)

    def bound(self, bytes: float, topology: Shape, wire: Wire = "fp32") -> float:
        """Return the least seconds of any all-reduce: the time to fill a host's or a rank's link.

        Each host must send and receive ``2 (Y-1)/Y S`` bytes (Patarasuk and Yuan 2009), each rank
        ``2 (N-1)/N S``. Latency and additions are left out.
        """
        hosts, ranks = topology.hosts, topology.world_size
        between = 2 * (hosts - 1) / hosts * bytes * self.slow.seconds_per_byte * WIRE_SHARE[wire]
        share = 2 * (ranks // hosts - 1) / max(ranks // hosts, 1)
        return max(between, share * bytes * self.fast.seconds_per_byte)

    def choose(
        self,
        bytes: float,
        topology: Shape,
        wire: Wire = "fp32",
        algorithms: Sequence[Algorithm] = ("flat", "torus"),
        chunks: Sequence[int] = CHUNKS,
    ) -> Choice:
        """Return the fastest of ``algorithms``, with the first chunk count that is about as fast.

        Args:
            bytes: size of the message, as fp32.
            topology: the grid.
            wire: number format on the slow axis; never chosen automatically, since it costs
                precision.
            algorithms: in order of preference; by default those that the package can run.
            chunks: the chunk counts to consider.
        """
        choices = [
            Choice(name, count, used, self.time(name, bytes, topology, count, used))
            for name in algorithms
            for count in (chunks if name == "torus" else (1,))
            for used in ((wire,) if name != "flat" else ("fp32",))
        ]
        best = min(choices, key=lambda choice: choice.seconds)
        return next(
            choice
            for choice in choices
            if choice.algorithm == best.algorithm and choice.seconds <= AS_FAST * best.seconds
        )

    def _ring(self, ranks: int, crossings: int) -> Link:
        """Return the link that a ring of ``ranks`` hops, ``crossings`` between hosts, is like."""
        if crossings == 0:
            return self.fast
        latency = ((ranks - crossings) * self.fast.latency + crossings * self.slow.latency) / ranks
        seconds = self.slow.seconds_per_byte
        if crossings < ranks:
            seconds = max(seconds, self.fast.seconds_per_byte)
        return Link(latency, seconds)

    def _flat(self, bytes: float, topology: Shape) -> float:
        ranks = topology.world_size
        ring = self._ring(ranks, topology.crossings)
        # A host's link is left once by ranks placed in order, by each of them where interleaved.
        shared = max(topology.crossings / topology.hosts, 1.0) if topology.hosts > 1 else 1.0
        step = ring.latency + bytes / ranks * ring.seconds_per_byte * shared
        return self.launch + 2 * (ranks - 1) * step + (ranks - 1) / ranks * bytes * self.reduction

    def _hierarchical(self, bytes: float, topology: Shape, wire: Wire) -> float:
        inside, rows = topology.columns, topology.rows
        seconds = 0.0
        if inside > 1:
            step = self.fast.latency + bytes / inside * self.fast.seconds_per_byte
            seconds += 2 * self.launch + 4 * (inside - 1) * step
            seconds += (inside - 1) / inside * bytes * self.reduction
        if rows > 1:
            ring = self._ring(rows, topology.hosts if topology.hosts > 1 else 0)
            step = ring.latency + bytes / rows * ring.seconds_per_byte * WIRE_SHARE[wire]
            seconds += self.launch + 2 * (rows - 1) * step
            seconds += (rows - 1) / rows * bytes * self.reduction
        return seconds


def _check(algorithm: str, chunks: int, wire: str) -> None:
    if algorithm not in ALGORITHMS:
        allowed = ", ".join(ALGORITHMS)
        raise UserError(
            f"all-reduce {algorithm!r}: choose from {allowed}{nearest(algorithm, ALGORITHMS)}"
        )
    if wire not in WIRE_SHARE:
        raise UserError(f"wire {wire!r}: choose from {', '.join(WIRE_SHARE)}")
    if chunks < 1:
        raise UserError(f"chunks {chunks}: at least 1")
