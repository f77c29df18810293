"""Ranks that start again on a store full of what others left agree on a place of their own."""

from __future__ import annotations

import socket
import sys
import time
from datetime import timedelta

import psutil
import pytest
import torch.distributed as dist

from largebatch._errors import RunFailure, UserError
from largebatch.processes import rendezvous
from largebatch.processes.environment import World, free_port
from largebatch.processes.rendezvous import serve, session, shared_store


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
    agent = serve(World())
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")

    def start(rank: int, _: dist.Store) -> bytes:
        store = shared_store(World(rank, 2, rank, 2, "torchrun", port=agent.port), 20.0)
        store.set(f"from/{rank}", "here")
        store.wait([f"from/{1 - rank}"], timedelta(seconds=20))
        return store.get(f"from/{1 - rank}")

    for _ in range(2):
        assert on_ranks(2, start) == [b"here", b"here"]


def listening() -> set[tuple[str, int]]:
    """Return where this process listens."""
    found = psutil.Process().net_connections("inet")
    return {tuple(each.laddr) for each in found if each.status == psutil.CONN_LISTEN}


def by_hand(rank: int, size: int, port: int, address: str = "127.0.0.1") -> World:
    local = size if address == "127.0.0.1" else 1
    return World(rank, size, rank % local, local, "mpirun", address, port)


def test_ranks_of_one_host_meet_where_no_other_host_comes(on_ranks) -> None:
    before, port = listening(), free_port()
    seen: list[set[tuple[str, int]]] = []
    kept: list[dist.Store] = []

    def start(rank: int, _: dist.Store) -> bytes:
        store = shared_store(by_hand(rank, 2, port), 20.0)
        kept.append(store)  # rank 0's goes with it
        store.set(f"from/{rank}", "here")
        store.wait([f"from/{1 - rank}"], timedelta(seconds=20))
        seen.append(listening() - before)
        return store.get(f"from/{1 - rank}")

    assert on_ranks(2, start) == [b"here", b"here"]
    assert seen == [{("127.0.0.1", port)}] * 2


def test_with_others_elsewhere_every_interface_listens(on_ranks) -> None:
    before, port = listening(), free_port()
    seen: list[set[tuple[str, int]]] = []
    kept: list[dist.Store] = []

    def start(rank: int, _: dist.Store) -> None:
        kept.append(shared_store(by_hand(rank, 2, port, socket.gethostname()), 20.0))
        seen.append(listening() - before)

    on_ranks(2, start)
    assert seen[0] <= {("::", port), ("0.0.0.0", port)} and seen[0]


@pytest.mark.parametrize("address", ["127.0.0.1", "host0"])
def test_a_port_that_is_taken_is_said_at_once(address, monkeypatch) -> None:
    monkeypatch.setattr(rendezvous, "_known", lambda world, patience: None)
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        begun = time.monotonic()
        with pytest.raises(
            RunFailure, match=rf"rank 0 on .*: port {port} is not to be had.*in use"
        ):
            shared_store(by_hand(0, 2, port, address), 600.0)
        assert time.monotonic() - begun < 5


@pytest.mark.parametrize("rank", [0, 1])
def test_an_unknown_host_is_said_long_before_the_timeout(rank, monkeypatch) -> None:
    monkeypatch.setattr(rendezvous, "NAME_SECONDS", 0.5)
    begun = time.monotonic()
    with pytest.raises(UserError, match=f"rank {rank} on .*MASTER_ADDR='no-host.invalid'") as said:
        shared_store(by_hand(rank, 2, 29500, "no-host.invalid"), 600.0)
    assert said.value.one_rank  # each rank meets it by itself
    assert time.monotonic() - begun < 30


def test_a_name_that_is_known_late_is_waited_for(monkeypatch) -> None:
    asked = []

    def getaddrinfo(*_: object, **__: object) -> list[object]:
        asked.append(1)
        if len(asked) < 3:
            raise socket.gaierror(-2, "Name or service not known")
        return []

    monkeypatch.setattr(rendezvous.socket, "getaddrinfo", getaddrinfo)
    rendezvous._known(by_hand(1, 2, 1, "pod-0.svc"), 2.0)
    assert len(asked) == 3


def test_nobody_is_waited_for_as_long_as_for_a_collective(monkeypatch) -> None:
    monkeypatch.setattr(rendezvous, "JOIN_SECONDS", 1.0)
    begun = time.monotonic()
    with pytest.raises(RunFailure, match=r"rank 1 on .*: nobody answers at 127.0.0.1:\d+ for 1 s"):
        shared_store(by_hand(1, 2, free_port()), 1800.0)
    with pytest.raises(RunFailure, match=r"rank\(s\) 1, 2 have not come in 1 s"):
        shared_store(by_hand(0, 3, free_port()), 1800.0)
    assert time.monotonic() - begun < 20


def test_who_is_waited_for_is_said_meanwhile(monkeypatch, capsys) -> None:
    monkeypatch.setattr(rendezvous, "SAY_SECONDS", 0.2)
    with pytest.raises(RunFailure):
        session(dist.HashStore(), 0, 40, 0.6)
    assert capsys.readouterr().out == (
        f"rank 0 waits for rank(s) {', '.join(map(str, range(1, 21)))}, ...\n"
    )


def test_two_of_one_number_are_refused(on_ranks) -> None:
    """Such as two commands that were both given RANK=1: they would share out no work."""
    kept = dist.HashStore()
    numbers, said = (0, 1, 1, 2), []

    def start(rank: int, _: dist.Store) -> None:
        try:
            deadline = time.monotonic() + 15
            while numbers[rank] == 2 and not said and time.monotonic() < deadline:
                time.sleep(0.01)  # comes when the second of rank 1 has been told: rank 0 waits
            session(kept, numbers[rank], 3, 20.0)
        except RunFailure as failure:
            said.append(str(failure))

    on_ranks(4, start)
    assert said == ["rank 1: another process has this number, too"]


def test_ranks_that_count_differently_are_refused(on_ranks) -> None:
    kept = dist.HashStore()
    said = []

    def start(rank: int, _: dist.Store) -> None:
        try:
            session(kept, rank, (2, 4)[rank], 0.5)
        except RunFailure as failure:
            said.append(str(failure))

    on_ranks(2, start)
    assert sorted(said) == [
        "rank 0: rank(s) 1 have not come in 0 s",
        "rank 1 is told of 4 ranks, rank 0 of 2",
    ]


class Mpi:
    """Stands for mpi4py with a communicator of so many."""

    def __init__(self, size: int) -> None:
        self.COMM_WORLD = self
        self.size, self.MPI, self.told = size, self, None

    def bcast(self, value: object, root: int) -> object:
        self.told = value if value else self.told
        return self.told


def test_mpi_tells_where_rank_0_is(monkeypatch) -> None:
    mpi = Mpi(2)
    monkeypatch.setitem(sys.modules, "mpi4py", mpi)
    monkeypatch.setattr(rendezvous, "own_address", lambda: "10.0.0.5")
    first = rendezvous._located(World(0, 2, 0, 1, "mpirun", ""))
    second = rendezvous._located(World(1, 2, 0, 1, "mpirun", ""))
    assert first.address == second.address == "10.0.0.5" and first.port == second.port > 0

    def none() -> str:
        raise UserError("no address: set MASTER_ADDR")

    monkeypatch.setattr(rendezvous, "own_address", none)
    for rank in range(2):  # not rank 0 alone, which the others wait for
        with pytest.raises(UserError, match="no address"):
            rendezvous._located(World(rank, 2, 0, 1, "mpirun", ""))


@pytest.mark.parametrize(("mpi", "why"), [(None, "is not installed"), (Mpi(1), "another MPI")])
def test_without_mpi_an_address_is_asked_for(mpi, why, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", mpi)
    with pytest.raises(UserError, match=f"MASTER_ADDR.*{why}"):
        shared_store(World(1, 2, 0, 1, "mpiexec", ""), 600.0)
