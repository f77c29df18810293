"""Ranks that start again on a store full of what others left agree on a place of their own."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from largebatch._errors import RunFailure
from largebatch.distributed.environment import World, free_port
from largebatch.distributed.rendezvous import session, shared_store


def test_every_start_has_a_place_of_its_own(on_ranks) -> None:
    """Also where ranks were lost before the others had heard of them, and any rank is the last."""
    kept = dist.HashStore()
    kept.set("largebatch/word/1", "of a rank that was lost")
    names = []
    for late in range(3):

        def start(rank: int, _: dist.Store, late: int = late) -> str:
            time.sleep(0.3 if rank == late else 0)
            return session(kept, rank, 3, 20.0)

        found = on_ranks(3, start)
        assert len(set(found)) == 1
        names.append(found[0])
    assert len(set(names)) == 3


@pytest.mark.parametrize("absent", [0, 2])
def test_who_stays_away_is_named(on_ranks, absent) -> None:
    kept = dist.HashStore()
    on_ranks(3, lambda rank, _: session(kept, rank, 3, 20.0))  # a start that went well before
    said = {}

    def start(rank: int, _: dist.Store) -> None:
        if rank == absent:
            return
        try:
            session(kept, rank, 3, 0.5)
        except RunFailure as failure:
            said[rank] = str(failure)

    on_ranks(3, start)
    if absent == 0:
        assert said == {rank: f"rank {rank}: rank 0 has not come in 0 s" for rank in (1, 2)}
    else:
        assert said == {0: "rank 0: rank(s) 2 have not come in 0 s"}


def test_an_agent_store_that_is_gone_is_called_that(monkeypatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    world = World(1, 2, 1, 2, "torchrun", port=free_port())
    with pytest.raises(RunFailure, match=r"rank 1 on .* no store answers.*SHARE_RDZV_TCP_STORE=1"):
        shared_store(world, 1.0)


def test_ranks_share_their_agent_store(monkeypatch, on_ranks) -> None:
    agent = dist.TCPStore("127.0.0.1", 0, is_master=True)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")

    def start(rank: int, _: dist.Store) -> bytes:
        store = shared_store(World(rank, 2, rank, 2, "torchrun", port=agent.port), 20.0)
        store.set(f"from/{rank}", "here")
        store.wait([f"from/{1 - rank}"], timedelta(seconds=20))
        return store.get(f"from/{1 - rank}")

    for _ in range(2):
        assert on_ranks(2, start) == [b"here", b"here"]
