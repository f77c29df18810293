from __future__ import annotations

import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from largebatch._errors import UserError
from largebatch.distributed import topology as module
from largebatch.distributed.topology import Topology


def test_two_hosts_of_four():
    found = Topology.from_hosts("aaaabbbb")
    assert found.grid == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert (found.rows, found.columns, found.hosts, found.crossings) == (2, 4, 2, 2)
    assert found.place(5).column == (1, 5)
    assert str(found) == "8 ranks on 2 hosts, grid 2x4 (rows x columns)"


def test_interleaved_ranks_keep_rows_within_hosts():
    found = Topology.from_hosts("abababab")
    assert found.grid == ((0, 2, 4, 6), (1, 3, 5, 7))
    assert found.crossings == 8


def test_one_host_is_one_row():
    found = Topology.from_hosts("aaaaa")
    assert (found.rows, found.columns, found.crossings) == (1, 5, 0)


def test_single_ranks_are_one_column():
    found = Topology.from_hosts("abc")
    assert (found.rows, found.columns) == (3, 1)


def test_a_prime_number_of_ranks_leaves_a_remainder():
    found = Topology.from_hosts("aaaabbb")
    assert found.grid == ((0, 1, 2), (4, 5, 6))
    assert found.remainder == ((3,), ())
    assert found.place(3).row == (0, 1, 2, 3)
    assert found.place(3).column == ()


@pytest.mark.parametrize(
    ("ranks", "grid", "rows"),
    [
        (4, "2x2", ((0, 1), (2, 3))),
        (6, "2x3", ((0, 1, 2), (3, 4, 5))),
        (6, "3x2", ((0, 1), (2, 3), (4, 5))),
    ],
)
def test_a_grid_on_one_host(ranks, grid, rows):
    assert Topology.from_hosts("a" * ranks, grid).grid == rows


@pytest.mark.parametrize("grid", ["3x3", "2", "axb", "0x4", "4x2x1", ""])
def test_grids_that_do_not_fit_are_refused(grid):
    with pytest.raises(UserError, match=r"choose from 8x1, 4x2, 2x3, 2x4"):
        Topology.from_hosts("aaaabbbb", grid)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40))
def test_every_rank_has_one_place_and_rows_stay_on_their_host(hosts):
    found = Topology.from_hosts(hosts)
    placed = [rank for row in found.grid + found.remainder for rank in row]
    assert sorted(placed) == list(range(len(hosts)))
    for row, rest in zip(found.grid, found.remainder, strict=True):
        assert len({hosts[rank] for rank in row + rest}) == 1
        assert len(row) == found.columns
    for rank in range(len(hosts)):
        place = found.place(rank)
        assert place.row[place.position] == rank
        assert not place.column or rank in place.column


@pytest.mark.parametrize("differs", ["hostname", "boot id", "namespace"])
def test_ranks_share_a_host_only_if_all_three_agree(tmp_path, monkeypatch, differs):
    one = module.host_identity()
    assert module.host_identity() == one
    if differs == "hostname":
        monkeypatch.setattr(module.socket, "gethostname", lambda: "another")
    elif differs == "boot id":
        (tmp_path / "boot_id").write_text("another\n")
        monkeypatch.setattr(module, "BOOT_ID", tmp_path / "boot_id")
    else:
        (tmp_path / "net").symlink_to("net:[1]")
        monkeypatch.setattr(module, "NETWORK_NAMESPACE", tmp_path / "net")
    assert module.host_identity() != one


def test_ranks_of_this_process_share_a_host(on_ranks):
    found = on_ranks(3, lambda rank, store: Topology.discover(store, rank, 3))
    assert set(found) == {Topology.from_hosts("aaa")}


def test_the_key_tells_topologies_apart():
    kinds = (("aabb", None), ("abab", None), ("aaaa", "2x2"), ("aaaa", None))
    keys = {Topology.from_hosts(hosts, grid).key() for hosts, grid in kinds}
    assert len(keys) == 4


def test_discovery_needs_no_extended_store(tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 1)
    assert Topology.discover(store, 0, 1).world_size == 1
