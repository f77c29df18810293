"""What the cost of a collective asks of a topology."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Shape(Protocol):
    """Rows and columns of ranks; ``Topology`` answers this, and so does :class:`Grid`."""

    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    @property
    def hosts(self) -> int: ...
    @property
    def crossings(self) -> int:
        """How many of the flat ring's hops (rank r to r + 1, the last to the first) leave a host"""


@dataclass(frozen=True)
class Grid:
    """A topology by its numbers alone: ``rows`` hosts of ``columns`` ranks, placed in order."""

    rows: int
    columns: int

    @property
    def world_size(self) -> int:
        return self.rows * self.columns

    @property
    def hosts(self) -> int:
        return self.rows

    @property
    def crossings(self) -> int:
        return self.rows if self.rows > 1 else 0
