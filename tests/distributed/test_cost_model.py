"""The formulas against sums done by hand, their limits, and against each other."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch._errors import UserError
from largebatch.distributed.cost_model import ALGORITHMS, AS_FAST, CostModel, Link
from largebatch.distributed.grid import Grid, grids

PLAIN = CostModel(Link(1.0, 0.5), Link(10.0, 2.0))  # numbers that sums by hand can carry
LAB = CostModel(Link(50e-6, 1 / 1.5e9), Link(100e-6, 1 / 25e6))
SIZE = 16_777_216


@dataclass(frozen=True)
class Uneven:
    """Two hosts, three ranks and two: a grid of 2 x 2 and one rank outside of it."""

    rows: int = 2
    columns: int = 2
    world_size: int = 5
    hosts: int = 2
    row_hosts: int = 1
    crossings: int = 2


@dataclass(frozen=True)
class OneHost:
    """A grid that is forced on one host: every link is fast."""

    rows: int
    columns: int
    hosts: int = 1
    row_hosts: int = 1
    crossings: int = 0

    @property
    def world_size(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class Interleaved:
    """Ranks dealt to two hosts in turn: every hop of the flat ring leaves a host."""

    rows: int = 2
    columns: int = 4
    world_size: int = 8
    hosts: int = 2
    row_hosts: int = 1
    crossings: int = 8


def test_by_hand():
    """12 bytes over 2 hosts of 3 ranks."""
    grid = Grid(2, 3)
    # Flat: 10 steps of 2 bytes; 4 hops of latency 1 and 2 of 10 are 4 on average; 2 s a byte.
    assert PLAIN.time("flat", 12, grid) == pytest.approx(10 * (4 + 2 * 2))
    # Rows: 4 steps of 4 bytes. Columns: 2 steps; the host's link carries 3 x 2 bytes in each.
    assert PLAIN.row_time(12, grid) == pytest.approx(4 * (1 + 4 * 0.5))
    assert PLAIN.column_time(12, grid) == pytest.approx(2 * (10 + 6 * 2))
    assert PLAIN.time("torus", 12, grid) == pytest.approx(12 + 44)
    assert PLAIN.time("mesh", 12, grid) == PLAIN.time("torus", 12, grid)
    # Hierarchical: 8 steps of 4 bytes inside, 2 of 6 bytes between the first ranks.
    assert PLAIN.time("hierarchical", 12, grid) == pytest.approx(8 * (1 + 2) + 2 * (10 + 12))
    # Two chunks: rows 4 * (1 + 1), columns 2 * (10 + 6), twice, one after the other.
    assert PLAIN.time("torus", 12, grid, chunks=2) == pytest.approx(8 + 2 * 32)
    # On a host the second follows when the columns' bytes are sent, 2 * 6, or at the processors'
    # work and the rows' bytes: 20 + 4.
    for work, interval in ((1.0, 12), (20.0, 24)):
        host = replace(PLAIN, chunk=work)
        assert host.time("torus", 12, grid, chunks=2) == pytest.approx(8 + 32 + interval)
        assert host.time("torus", 12, grid) == PLAIN.time("torus", 12, grid)
    # bf16 between hosts halves what the host's link carries.
    assert PLAIN.time("torus", 12, grid, wire="bf16") == pytest.approx(12 + 2 * (10 + 3 * 2))


def test_launches_and_additions_by_hand():
    grid, free = Grid(2, 3), Link(0.0, 0.0)
    launches = CostModel(free, free, launch=1.0)
    assert [launches.time(a, 12, grid) for a in ALGORITHMS] == [1, 3, 4, 3]
    assert launches.time("torus", 12, grid, wire="bf16") == 4
    adding = CostModel(free, free, reduction=1.0)
    assert adding.time("flat", 12, grid) == pytest.approx(5 / 6 * 12)
    assert adding.time("torus", 12, grid) == pytest.approx(2 / 3 * 12 + 1 / 2 * 4)
    assert adding.time("hierarchical", 12, grid) == pytest.approx(2 / 3 * 12 + 1 / 2 * 12)


def test_a_rank_outside_of_the_grid_folds_in_and_out():
    inside = PLAIN.time("torus", 12, Grid(2, 2))
    assert PLAIN.time("torus", 12, Uneven()) == pytest.approx(inside + 2 * (1 + 12 * 0.5))
    assert PLAIN.steps("torus", Uneven()) == PLAIN.steps("torus", Grid(2, 2)) + 2


def test_interleaved_ranks_load_the_host_link_with_every_hop():
    free = CostModel(Link(0.0, 0.0), Link(0.0, 1.0))
    assert free.time("flat", 8, Interleaved()) == pytest.approx(
        4 * free.time("flat", 8, Grid(2, 4))
    )


def test_steps_of_the_literature():
    """Mikami 2018 against the ring, and Jia 2018's 1,024 GPUs in groups of 16."""
    grids = {256: (16, 16), 512: (32, 16), 1088: (34, 32), 2048: (64, 32), 4096: (64, 64)}
    assert {n: LAB.steps("torus", Grid(*yx)) for n, yx in grids.items()} == {
        256: 60,
        512: 92,
        1088: 128,
        2048: 188,
        4096: 252,
    }
    assert LAB.steps("flat", Grid(64, 16)) == 2046
    assert LAB.steps("hierarchical", Grid(64, 16)) == 186
    assert LAB.steps("torus", Grid(2, 4), chunks=8) == 8 * LAB.steps("torus", Grid(2, 4))


def test_bytes_of_a_rank():
    grid = Grid(2, 4)
    assert LAB.bytes_per_rank("flat", 64, grid).total == 2 * 7 / 8 * 64
    torus = LAB.bytes_per_rank("torus", 64, grid)
    assert (torus.row, torus.column) == (2 * 3 / 4 * 64, 2 * 1 / 2 * 16)
    assert LAB.bytes_per_rank("torus", 64, grid, "bf16").column == torus.column / 2
    assert LAB.bytes_per_rank("hierarchical", 64, grid).column == 4 * torus.column
    assert torus.total == LAB.bytes_per_rank("flat", 64, grid).total  # both are optimal
    assert LAB.bytes_per_rank("flat", 64, OneHost(2, 4)).column == 0


def test_the_bound_of_the_lab():
    """671 ms on 2 hosts and 1,007 on 4, of 16.8 MB at 200 Mbit/s."""
    assert LAB.bound(SIZE, Grid(2, 4)) == pytest.approx(0.671, abs=5e-4)
    assert LAB.bound(SIZE, Grid(4, 2)) == pytest.approx(1.007, abs=5e-4)


sizes = st.just(0.0) | st.floats(1.0, 1e9)  # bytes
by_host = st.builds(Grid, st.integers(1, 64), st.integers(1, 16))
links = st.builds(Link, st.floats(0, 1e-3), st.floats(1e-12, 1e-6))
models = st.builds(
    CostModel, links, links, st.floats(0, 1e-9), st.floats(0, 1e-4), st.none() | st.floats(0, 1e-2)
)
chunks = st.integers(1, 64)
wires = st.sampled_from(["fp32", "bf16", "fp16"])


@given(models, sizes, st.integers(2, 16))
def test_one_host_is_the_ring_on_the_fast_link(model, size, ranks):
    grid = Grid(1, ranks)
    ring = 2 * (ranks - 1) * (model.fast.latency + size / ranks * model.fast.seconds_per_byte)
    ring += (ranks - 1) / ranks * size * model.reduction
    assert model.time("flat", size, grid) == pytest.approx(model.launch + ring)
    assert model.time("torus", size, grid) == pytest.approx(2 * model.launch + ring)


@given(models, sizes, st.integers(2, 64))
def test_one_rank_a_host_is_the_ring_on_the_slow_link(model, size, hosts):
    same = replace(model, fast=model.slow)
    assert model.time("torus", size, Grid(hosts, 1)) == pytest.approx(
        model.time("flat", size, Grid(hosts, 1))
    )
    assert model.time("flat", size, Grid(hosts, 1)) == same.time("flat", size, Grid(hosts, 1))


@given(models, sizes)
def test_one_rank_pays_nothing(model, size):
    assert [model.time(a, size, Grid(1, 1)) for a in ALGORITHMS] == [0.0] * 4


@given(models, sizes, by_host)
def test_many_chunks_approach_the_slower_axis(model, size, grid):
    """Without latency and launches the pipeline's limit is the axis that takes longer."""
    free = CostModel(Link(0.0, model.fast.seconds_per_byte), Link(0.0, model.slow.seconds_per_byte))
    rows, columns = free.row_time(size, grid), free.column_time(size, grid)
    limit = max(rows, columns)
    many = free.time("torus", size, grid, chunks=10**6)
    assert many == pytest.approx(limit, rel=1e-5)
    assert limit <= free.time("torus", size, grid, chunks=2) * (1 + 1e-9)
    assert free.time("torus", size, grid) == pytest.approx(rows + columns)


@given(models, sizes, by_host, chunks, wires)
def test_never_below_the_bandwidth_bound(model, size, grid, count, wire):
    bound = model.bound(size, grid, wire)
    for algorithm in ALGORITHMS:
        used = "fp32" if algorithm == "flat" else wire
        parts = count if algorithm == "torus" else 1
        if algorithm == "mesh" or algorithm == "torus" or used == "fp32":
            assert model.time(algorithm, size, grid, parts, used) >= bound * (1 - 1e-9)


@given(models, sizes, by_host)
def test_torus_without_latency_reaches_the_bound_of_the_slow_link(model, size, grid):
    free = CostModel(Link(0.0, 1e-15), Link(0.0, model.slow.seconds_per_byte))
    if grid.rows > 1:
        assert free.time("torus", size, grid) == pytest.approx(free.bound(size, grid), rel=1e-2)


@given(models, sizes, by_host, wires)
def test_the_choice_is_the_fastest(model, size, grid, wire):
    choice = model.choose(size, grid, wire)
    assert choice.seconds == model.time(choice.algorithm, size, grid, choice.chunks, choice.wire)
    assert choice.wire in ("fp32", wire)
    assert choice.seconds <= AS_FAST * model.time("flat", size, grid)
    for count in (1, 2, 8, 64):
        assert choice.seconds <= AS_FAST * model.time("torus", size, grid, count, wire)


def test_flat_is_chosen_where_nothing_is_gained():
    """One host: a torus of one row is the ring with one launch more."""
    assert replace(LAB, launch=1e-5).choose(SIZE, Grid(1, 8)).algorithm == "flat"
    assert LAB.choose(SIZE, Grid(8, 1)).algorithm == "flat"  # equal: the simpler one


def test_rows_that_span_hosts_by_hand():
    """12 bytes over 4 hosts of 3 ranks: 2 rows of 6 ranks on 2 hosts each."""
    grid = Grid(2, 6, per_host=3)
    assert (grid.hosts, grid.row_hosts, grid.crossings) == (4, 2, 4)
    # Rows: 10 steps of 2 bytes; 4 hops of latency 1 and 2 of 10 are 4 on average, 2 s a byte.
    assert PLAIN.row_time(12, grid) == pytest.approx(10 * (4 + 2 * 2))
    # Columns: 2 steps; the host's link carries 3 of 6 columns of 2 bytes, halved for two rows.
    assert PLAIN.column_time(12, grid) == pytest.approx(2 * (10 + 3 * 2))
    # Both axes use the host's link: a second chunk waits for all of the first.
    one = PLAIN.time("torus", 6, grid)
    assert PLAIN.time("torus", 12, grid, chunks=2) == pytest.approx(2 * one)


def test_grids_are_whole_hosts_or_whole_rows():
    found = grids(4, 6)
    assert [str(grid) for grid in found] == [
        *("24 x 1", "12 x 2", "8 x 3", "4 x 6", "2 x 12", "1 x 24"),
    ]
    assert {grid.hosts for grid in found} == {4}
    assert [grid.row_hosts for grid in found] == [1, 1, 1, 1, 2, 4]


@given(models, sizes, st.integers(1, 32), st.integers(1, 8), st.integers(1, 8))
def test_no_grid_is_below_the_bound(model, size, hosts, per_host, count):
    streams = replace(model, chunk=None)
    for grid in grids(hosts, per_host):
        bound = model.bound(size, grid)
        assert streams.time("torus", size, grid, count) >= bound * (1 - 1e-9)


def test_the_choice_says_what_it_is():
    choice = LAB.choose(SIZE, Grid(2, 4), "bf16")
    assert str(choice) == f"torus, 8 chunks, bf16 between hosts: {1e3 * choice.seconds:.3g} ms"


def test_a_model_survives_its_file():
    assert CostModel.from_mapping(asdict(LAB)) == LAB


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("tours",), "did you mean 'torus'"), (("torus", 0), "at least 1"),
     (("torus", 1, "int8"), "fp32, bf16, fp16")],
)  # fmt: skip
def test_mistakes_are_named(arguments, words):
    algorithm, *rest = arguments
    with pytest.raises(UserError, match=words):
        PLAIN.time(algorithm, 1, Grid(2, 2), *rest)
