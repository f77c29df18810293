"""Which ranks share a host, and the grid that a torus all-reduce lays over them.

A grid of Y rows by X columns has its rows within hosts, where links are fast, and its columns
across them (Mikami et al. 2018, "Massively Distributed SGD", section 3.2). Ranks that do not fill a
row are the remainder. Each belongs to a row of its own host, whose ranks add its numbers and send
back the result. So prime world sizes and hosts of unequal size give exact sums.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch._C._distributed_c10d import Store

from largebatch._errors import UserError

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
NETWORK_NAMESPACE = Path("/proc/self/ns/net")


def host_identity() -> str:
    """Return an identity of this host: hostname, boot id and network namespace.

    Containers of one machine may share a name or a kernel, and two network namespaces are connected
    by an ordinary link. So ranks share a host only if all three agree.
    """
    boot = BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""
    namespace = os.readlink(NETWORK_NAMESPACE) if NETWORK_NAMESPACE.exists() else ""
    return f"{socket.gethostname()} {boot} {namespace}"


@dataclass(frozen=True)
class Place:
    """The place of a rank in the grid.

    Attributes:
        row: ranks of its row: first those in the grid, then the remainder.
        column: ranks of its column; empty for a rank of the remainder.
        position: index of the rank in ``row``.
    """

    row: tuple[int, ...]
    column: tuple[int, ...]
    position: int


@dataclass(frozen=True)
class Topology:
    """The ranks on hosts, and the grid over the ranks.

    Attributes:
        host_of: for each rank, the number of its host, counted in the order of first ranks.
        grid: ``grid[y][x]`` is a rank.
        remainder: for each row, the ranks outside of the grid that belong to it.
    """

    host_of: tuple[int, ...]
    grid: tuple[tuple[int, ...], ...]
    remainder: tuple[tuple[int, ...], ...]

    @classmethod
    def from_hosts(cls, hosts: Sequence[Hashable], grid: str | None = None) -> Topology:
        """Lay a grid over ranks whose hosts are known.

        Args:
            hosts: for each rank, a value that is equal exactly for ranks of one host. Ranks may be
                placed in any order. Over MPI: ``comm.allgather(host_identity())``.
            grid: ``YxX``, rows by columns; by default rows are as long as the smallest host, and
                on one host there is one row.

        Raises:
            UserError: a grid whose rows do not fit within the hosts.
        """
        numbers: dict[Hashable, int] = {}
        host_of = tuple(numbers.setdefault(host, len(numbers)) for host in hosts)
        members = [
            [rank for rank, host in enumerate(host_of) if host == number]
            for number in range(len(numbers))
        ]
        smallest = min(map(len, members))
        columns = smallest if grid is None else _columns(grid, [len(ranks) for ranks in members])
        rows, remainder = [], []
        for ranks in members:
            full = len(ranks) // columns
            of_host = [tuple(ranks[y * columns : (y + 1) * columns]) for y in range(full)]
            rows += of_host
            rest = ranks[full * columns :]
            remainder += [tuple(rest[y::full]) for y in range(full)]
        return cls(host_of, tuple(rows), tuple(remainder))

    @classmethod
    def discover(
        cls, store: Store, rank: int, world_size: int, grid: str | None = None
    ) -> Topology:
        """Exchange host identities through ``store`` and lay the grid; a collective call."""
        store.set(f"host/{rank}", host_identity())
        keys = [f"host/{other}" for other in range(world_size)]
        hosts = store.multi_get(keys) if store.has_extended_api() else map(store.get, keys)  # type: ignore[attr-defined]
        return cls.from_hosts([bytes(host) for host in hosts], grid)

    @property
    def rows(self) -> int:
        """Return Y, the length of a column."""
        return len(self.grid)

    @property
    def columns(self) -> int:
        """Return X, the length of a row."""
        return len(self.grid[0])

    @property
    def world_size(self) -> int:
        """Return the number of ranks, the remainder included."""
        return len(self.host_of)

    @property
    def hosts(self) -> int:
        """Return the number of hosts."""
        return max(self.host_of) + 1

    @property
    def row_hosts(self) -> int:
        """Return 1: rows lie within hosts."""
        return 1

    @property
    def crossings(self) -> int:
        """Return how many hops of a flat ring (rank r to r + 1, the last to 0) leave a host."""
        around = zip(self.host_of, self.host_of[1:] + self.host_of[:1], strict=True)
        return sum(a != b for a, b in around)

    def place(self, rank: int) -> Place:
        """Return the row and the column of ``rank``."""
        for ranks, rest in zip(self.grid, self.remainder, strict=True):
            row = ranks + rest
            if rank in row:
                position = row.index(rank)
                inside = position < self.columns
                column = tuple(line[position] for line in self.grid) if inside else ()
                return Place(row, column, position)
        raise AssertionError(f"rank {rank} of {self.world_size}")

    def key(self) -> str:
        """Return a name for this topology, under which measurements can be stored."""
        text = json.dumps([self.host_of, self.grid, self.remainder])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        hosts = f"{self.hosts} host{'s' if self.hosts > 1 else ''}"
        rest = sum(map(len, self.remainder))
        outside = f", {rest} outside of it" if rest else ""
        return (
            f"{self.world_size} ranks on {hosts}, grid {self.rows}x{self.columns}"
            f" (rows x columns){outside}"
        )


def _columns(grid: str, sizes: Sequence[int]) -> int:
    """Return X of a grid written YxX, having checked that hosts of ``sizes`` ranks hold it."""
    match = re.fullmatch(r"(\d+)x(\d+)", grid.strip().lower())
    allowed = [f"{sum(size // x for size in sizes)}x{x}" for x in range(1, min(sizes) + 1)]
    if match is None or f"{int(match[1])}x{int(match[2])}" not in allowed:
        raise UserError(
            f"torus {grid!r}: rows x columns with rows within hosts; for {sum(sizes)} ranks on"
            f" {len(sizes)} host{'s' if len(sizes) > 1 else ''} choose from {', '.join(allowed)}"
        )
    return int(match[2])
