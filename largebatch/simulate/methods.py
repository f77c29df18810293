"""The methods of gradient exchange that a plan compares."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from typing import Protocol

from largebatch.distributed.cost_model import CHUNKS, Algorithm, CostModel, Wire
from largebatch.distributed.grid import Grid, grids
from largebatch.simulate.constants import table
from largebatch.simulate.nccl import Nccl


@dataclass(frozen=True)
class Exchange:
    """The way in which a method exchanges a message: description, chunks and seconds."""

    what: str
    seconds: float
    chunks: int = 1


class Method(Protocol):
    """A method of gradient exchange, with its displayed name and number format between hosts."""

    @property
    def name(self) -> str: ...
    @property
    def wire(self) -> Wire: ...

    def choose(self, cost: CostModel, bytes: float, hosts: Grid) -> Exchange:
        """Return how this method exchanges a message on the grid ``hosts`` (rows are hosts)."""


@dataclass(frozen=True)
class OnHosts:
    """One algorithm of the cost model on the grid of hosts."""

    name: str
    algorithm: Algorithm
    wire: Wire = "fp32"
    chunks: tuple[int, ...] = CHUNKS

    def choose(self, cost: CostModel, bytes: float, hosts: Grid) -> Exchange:
        chosen = cost.choose(bytes, hosts, self.wire, (self.algorithm,), self.chunks)
        return Exchange(self.algorithm, chosen.seconds, chosen.chunks)


@dataclass(frozen=True)
class OnBestGrid:
    """The torus on the fastest grid; rows may span hosts."""

    name: str
    wire: Wire = "fp32"

    def choose(self, cost: CostModel, bytes: float, hosts: Grid) -> Exchange:
        return self.best(cost, bytes, hosts)[1]

    def best(self, cost: CostModel, bytes: float, hosts: Grid) -> tuple[Grid, Exchange]:
        """Return the exchange of a message together with its fastest grid."""
        tried = []
        for grid in grids(hosts.rows, hosts.columns):
            chosen = cost.choose(bytes, grid, self.wire, ("torus",))
            exchange = Exchange(f"torus {grid}", chosen.seconds, chosen.chunks)
            tried.append((grid, exchange))
        return min(tried, key=lambda pair: pair[1].seconds)


@dataclass(frozen=True)
class ByNccl:
    """NCCL's own all-reduce."""

    name: str = "NCCL"
    wire: Wire = "fp32"

    def choose(self, cost: CostModel, bytes: float, hosts: Grid) -> Exchange:
        if hosts.world_size == 1:
            return Exchange("nothing", 0.0)
        way = Nccl(table()["nccl"]).choose(bytes, hosts, cost)
        return Exchange(str(way), way.seconds)


@dataclass(frozen=True)
class Fastest:
    """The fastest of several methods for each message; of equals, the earlier one."""

    name: str
    of: tuple[Method, ...]
    wire: Wire = "fp32"

    def choose(self, cost: CostModel, bytes: float, hosts: Grid) -> Exchange:
        exchanges = [method.choose(cost, bytes, hosts) for method in self.of]
        return min(exchanges, key=lambda exchange: exchange.seconds)


FLAT = OnHosts("flat ring", "flat")
PIPELINED = OnHosts("torus", "torus")
NCCL = ByNccl()
BEST_GRID = OnBestGrid("torus, best grid")

METHODS: tuple[Method, ...] = (
    FLAT,
    OnHosts("hierarchical", "hierarchical"),
    OnHosts("2-D mesh", "mesh"),
    PIPELINED,
    OnHosts("torus, bf16 wire", "torus", "bf16"),
    BEST_GRID,
    NCCL,
)


def automatic(wire: Wire) -> Method:
    """Return the method ``distributed.allreduce=auto`` on GPUs: NCCL or the torus, by message."""
    return Fastest("auto", (NCCL, replace(PIPELINED, wire=wire)), wire)


def ranges(method: Method, cost: CostModel, hosts: Grid, largest: float) -> str:
    """Return in words how ``method`` exchanges messages by size, up to ``largest`` bytes."""
    sizes = [2**k for k in range(10, 60) if 2**k <= largest] or [int(largest)]
    runs = groupby(sizes, lambda size: method.choose(cost, size, hosts).what)
    parts = [(what, next(iter(group))) for what, group in runs]
    return "; ".join(
        what if place == 0 else f"{what} from {_size(first)}"
        for place, (what, first) in enumerate(parts)
    )


def _size(bytes: int) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if bytes >= unit:
            return f"{bytes // unit} {name}"
    return f"{bytes // 1024} KiB"
