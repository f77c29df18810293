"""The shape of a topology, as far as the cost of a collective depends on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Shape(Protocol):
    """Protocol for rows and columns of ranks; ``Topology`` and :class:`Grid` implement it."""

    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    @property
    def hosts(self) -> int: ...
    @property
    def row_hosts(self) -> int:
        """How many hosts a row spans: 1 where rows lie within hosts"""

    @property
    def crossings(self) -> int:
        """How many of the flat ring's hops (rank r to r + 1, the last to the first) leave a host"""


@dataclass(frozen=True)
class Grid:
    """A topology given by numbers alone, with ranks placed in order.

    Args:
        rows, columns: size of the grid.
        per_host: ranks per host, a divisor or a multiple of ``columns``; by default ``columns``, so
            that a row is a host.
    """

    rows: int
    columns: int
    per_host: int | None = None

    @property
    def world_size(self) -> int:
        return self.rows * self.columns

    @property
    def hosts(self) -> int:
        return self.world_size // (self.per_host or self.columns)

    @property
    def row_hosts(self) -> int:
        return max(1, self.columns // (self.per_host or self.columns))

    @property
    def crossings(self) -> int:
        return self.hosts if self.hosts > 1 else 0

    def __str__(self) -> str:
        return f"{self.rows} x {self.columns}"


def grids(hosts: int, per_host: int) -> list[Grid]:
    """Return every grid in which rows are whole parts of hosts, or hosts whole parts of rows."""
    ranks = hosts * per_host
    return [
        Grid(ranks // columns, columns, per_host)
        for columns in range(1, ranks + 1)
        if ranks % columns == 0 and (columns % per_host == 0 or per_host % columns == 0)
    ]
