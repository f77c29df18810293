"""NCCL's tuner, against its formulas worked by hand from the constants of its source."""

from __future__ import annotations

import pytest

from largebatch.distributed.cost_model import CostModel, Link
from largebatch.distributed.grid import Grid
from largebatch.simulate.constants import link, published, table
from largebatch.simulate.methods import METHODS, NCCL, automatic, ranges
from largebatch.simulate.nccl import Nccl

H100 = published(link("nvlink-h100"), link("ib-ndr", cards=8))
TUNER = Nccl(table()["nccl"])


def ways(bytes, grid, cost=H100):
    return {str(way): way.seconds for way in TUNER._ways(bytes, grid, cost)}


def test_a_tree_by_hand():
    """64 hosts of 8: 2 (7 x 4.0 + 6 x 14) us and a base of 8.4; beyond 256 MiB no correction."""
    size = 2.0**29
    seconds = 8.4e-6 + 2 * (7 * 4.0e-6 + 6 * 14e-6) + 2 * size / (0.92 * 370.8e9)
    assert ways(size, Grid(64, 8))["NCCL tree (Simple)"] == pytest.approx(seconds)


def test_a_corrected_tree_by_hand():
    """At 1 MiB, 2^14 times 64 bytes, LL128 reaches 0.6 of its share, 0.92 x 120/128."""
    seconds = 14e-6 + 2 * (7 * 1.25e-6 + 6 * 8.5e-6) + 2 * 2**20 / (0.6 * 0.8625 * 370.8e9)
    assert ways(2.0**20, Grid(64, 8))["NCCL tree (LL128)"] == pytest.approx(seconds)


def test_a_ring_by_hand():
    """2 x 511 steps, 126 of them between hosts; Simple's latency times 1.4 for large messages."""
    size = 2.0**29
    latency = 8.4e-6 + 896 * 3.4e-6 + 126 * 14e-6
    seconds = 1.4 * latency + 2 * 511 / 512 * size / 370.8e9
    assert ways(size, Grid(64, 8))["NCCL ring (Simple)"] == pytest.approx(seconds)
    small = ways(64.0, Grid(64, 8))["NCCL ring (Simple)"]
    assert small == pytest.approx(latency + 2 * 511 / 512 * 64 / 370.8e9)


def test_one_rank_a_host_shows_the_trees_latency():
    slow = CostModel(Link(0.0, 1e-12), Link(0.0, 1e-12))
    ring = ways(64.0, Grid(4, 1), slow)["NCCL ring (LL128)"]
    assert ring == pytest.approx(14e-6 + 6 * 8.5e-6, rel=1e-4)


def test_trees_serve_hundreds_of_hosts_and_rings_a_host():
    assert "tree" in str(TUNER.choose(25e6, Grid(512, 8), H100))
    assert "ring" in str(TUNER.choose(2.0**30, Grid(1, 8), H100))
    ring = ways(25e6, Grid(512, 8))
    assert ring["NCCL tree (Simple)"] < 0.05 * ring["NCCL ring (Simple)"]


@pytest.mark.parametrize("hosts", [1, 2, 16, 512])
@pytest.mark.parametrize("bytes", [1.0, 2.0**16, 2.0**30])
def test_never_below_the_bound(hosts, bytes):
    grid = Grid(hosts, 8)
    assert NCCL.choose(H100, bytes, grid).seconds >= H100.bound(bytes, grid)


def test_the_ranges_of_sizes_are_those_of_the_choice():
    """Each size named is where the choice changes, and what is said is what is chosen there."""
    slow = published(link("nvlink-a100"), link("ethernet-10g"))
    auto, grid = automatic("fp32"), Grid(16, 8)
    text = ranges(auto, slow, grid, 2.0**27)
    assert text == "NCCL tree (LL); NCCL tree (LL128) from 8 KiB; torus from 256 KiB"
    for size, what in ((2**12, "LL)"), (2**13, "LL128"), (2**17, "LL128"), (2**18, "torus")):
        assert what in auto.choose(slow, size, grid).what


def test_a_choice_that_changes_back_is_told_whole():
    """What a single crossing cannot say: here the torus wins in the middle alone."""

    class Between:
        name, wire = "between", "fp32"

        def choose(self, cost, bytes, hosts):
            from largebatch.simulate.methods import Exchange

            return Exchange("torus" if 2**20 <= bytes < 2**30 else "flat ring", 0.0)

    text = ranges(Between(), H100, Grid(2, 8), 2.0**38)
    assert text == "flat ring; torus from 1 MiB; flat ring from 1 GiB"


def test_the_best_grid_may_span_hosts():
    best = next(method for method in METHODS if method.name == "torus, best grid")
    assert best.choose(H100, 25e6, Grid(64, 8)).what == "torus 16 x 32"
