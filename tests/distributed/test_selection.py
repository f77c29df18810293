"""What is chosen for a message, on which grounds, and that it is measured once a day."""

from __future__ import annotations

import json
import os
import time

import pytest
import torch

from largebatch.distributed import selection as module
from largebatch.distributed.cost_model import Choice, CostModel, Link
from largebatch.distributed.preference import Preference
from largebatch.distributed.probe import Probe, Timing
from largebatch.distributed.selection import KEPT_SECONDS, Selection
from largebatch.distributed.topology import Topology

TOPOLOGY = Topology.from_hosts("aaaabbbb")
SLOW_NETWORK = CostModel(Link(5e-6, 1e-9), Link(1e-4, 4e-8))


def test_a_slow_network_takes_the_torus_for_large_messages():
    chosen = Selection("auto", TOPOLOGY, "fp32", SLOW_NETWORK)
    assert chosen.choose(2**24).algorithm == "torus"
    assert chosen.choose(2**24).chunks > 1
    assert "torus" in str(chosen) and "25 MB/s" in str(chosen)


def test_flat_is_chosen_and_said_where_it_wins():
    uniform = CostModel(Link(5e-5, 1e-9), Link(5e-5, 1e-10))
    topology = Topology.from_hosts("ab" * 2)
    model = Selection("auto", topology, "fp32", uniform)
    flat, torus = (uniform.time(name, 2**24, topology) for name in ("flat", "torus"))
    assert (model.choose(2**24).algorithm == "flat") == (torus * module.MARGIN >= flat)
    timings = (Timing("flat", 2**20, 1.0, 1.0), Timing("torus", 2**20, 99.0, 0.2))
    slower_than_modelled = Selection("auto", TOPOLOGY, "fp32", SLOW_NETWORK, timings)
    assert slower_than_modelled.choose(2**24).algorithm == "flat"
    assert str(slower_than_modelled).endswith("; flat")


def test_what_the_model_leaves_out_is_taken_from_the_sizes_that_were_timed():
    timings = (Timing("flat", 1000, 1.5, 1.0), Timing("flat", 3000, 5.0, 2.0))
    found = Selection("auto", TOPOLOGY, "fp32", SLOW_NETWORK, timings)
    flat = Choice("flat", 1, "fp32", 10.0)
    seconds = [found.seconds(flat, bytes) for bytes in (10, 1000, 2000, 3000, 10**9)]
    assert seconds == [10.5, 10.5, 11.75, 13.0, 13.0]
    assert found.seconds(Choice("torus", 1, "fp32", 10.0), 2000) == 10.0


def test_what_the_model_leaves_out_of_a_large_message_grows_with_the_bytes():
    timings = (Timing("torus", 1000, 1.5, 1.0), Timing("torus", module.LARGE, 5.0, 2.0))
    found = Selection("auto", TOPOLOGY, "fp32", SLOW_NETWORK, timings)
    torus = Choice("torus", 8, "fp32", 10.0)
    assert found.seconds(torus, module.LARGE) == 13.0
    assert found.seconds(torus, 4 * module.LARGE) == 22.0


def test_a_forced_torus_measures_nothing(ranks, monkeypatch):
    monkeypatch.setattr(Probe, "run", lambda self: pytest.fail("measured"))
    forced = ranks(4, Preference("torus"), hosts=[0, 0, 1, 1]).reducers[0].selection
    assert [forced.choose(2**power).chunks for power in (10, 20, 23, 30)] == [1, 1, 12, 64]
    # One host has no slow axis, and one rank a host no row.
    for hosts in ([0, 0, 0], [0, 1, 2]):
        alone = ranks(3, Preference("auto"), hosts=hosts).reducers[0]
        assert alone.selection.choose(2**24).algorithm == "flat" and alone.torus is None


def test_auto_measures_once_a_day_says_so_and_is_right(ranks, monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # As gloo's threads share this process with the ranks, only that it ends is asserted.
    first = ranks(4, Preference("auto"), hosts=[0, 0, 1, 1])
    decided = [reducer.selection for reducer in first.reducers]
    assert all(selection == decided[0] for selection in decided)
    assert decided[0].model is not None and len(decided[0].timings) >= 2
    assert all(timing.seconds > 0 for timing in decided[0].timings)
    said = capfd.readouterr().err
    assert said.count("all-reduce over 4 ranks on 2 hosts, grid 2x2") == 1 and "(measured)" in said
    tensors = [torch.full((3000,), float(rank)) for rank in range(4)]
    first.reduce(tensors)
    assert all(bool((tensor == 6).all()) for tensor in tensors)
    [kept] = (tmp_path / "largebatch").glob("links-*.json")
    assert set(json.loads(kept.read_text())) >= {"model", "timings"}
    monkeypatch.setattr(Probe, "run", lambda self: pytest.fail("measured again"))
    again = ranks(4, Preference("auto"), hosts=[0, 0, 1, 1]).reducers[0].selection
    assert again == decided[0] and "kept" in capfd.readouterr().err
    old = time.time() - KEPT_SECONDS - 1
    os.utime(kept, (old, old))
    with pytest.raises(BaseException, match="measured again"):
        ranks(4, Preference("auto"), hosts=[0, 0, 1, 1])
