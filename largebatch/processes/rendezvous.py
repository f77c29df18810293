"""The rendezvous of ranks: a fresh store for each start.

Ranks of one host meet on its loopback interface, which no other host reaches. torch's elastic agent
gives its ranks the same store for as long as the agent lives. After a restart this store still
holds the addresses of ranks that have ended. A back end would connect to these addresses, where
nobody listens, until its timeout. No environment variable identifies a start on every agent alike,
so the ranks agree on a name among themselves.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import replace
from datetime import timedelta

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from largebatch._errors import RunFailure, UserError
from largebatch.processes.address import LOOPBACK, own_address
from largebatch.processes.environment import World, free_port

JOIN_SECONDS = 300.0  # between the first rank and the last: imports from a slow disk take minutes
ANSWER_SECONDS = 60.0  # an agent's store is there before its ranks are
NAME_SECONDS = 30.0  # until the name of a host that starts, too, is known
SAY_SECONDS = 20.0  # of waiting in silence
POLL_SECONDS = 0.02
LOOK_SECONDS = 2.0  # between two looks whether the place is still this process's


def shared_store(world: World, timeout: float) -> Store:
    """Return a store that all ranks of this start share, and no earlier ranks have used.

    Args:
        timeout: timeout of later requests to the store, in seconds; ranks must join within
            ``JOIN_SECONDS``.

    Raises:
        RunFailure: no store answers, its port is taken, or ranks do not join.
        UserError: the address is not of a host, or is not given.
    """
    patience = min(timeout, JOIN_SECONDS)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and world.launcher == "torchrun":
        store = _agents(world, min(timeout, ANSWER_SECONDS))
    else:
        world = _located(world)
        if not world.on_one_host:
            _known(world, min(timeout, NAME_SECONDS))
        store = serve(world) if world.is_main else _visit(world, patience)
    name = session(store, world.rank, world.world_size, patience)
    store.set_timeout(timedelta(seconds=timeout))
    return PrefixStore(name, store)


def serve(world: World) -> TCPStore:
    """Return a store served by this process, on loopback only if all ranks are on this host.

    Raises:
        RunFailure: the port is taken.
    """
    try:
        if world.on_one_host:
            listener = socket.create_server((LOOPBACK, world.port))
        elif socket.has_dualstack_ipv6():
            listener = socket.create_server(
                ("", world.port), family=socket.AF_INET6, dualstack_ipv6=True
            )
        else:
            listener = socket.create_server(("", world.port))
    except OSError as error:
        raise RunFailure(
            f"{world.here}: port {world.port} is not to be had ({os.strerror(error.errno or 0)});"
            " set MASTER_PORT to one that is free, the same for every rank"
        ) from error
    port = listener.getsockname()[1]
    return TCPStore(
        LOOPBACK,
        port,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


def _visit(world: World, patience: float) -> TCPStore:
    """Return a connection to the store that rank 0 keeps."""
    address = LOOPBACK if world.on_one_host else world.address
    return _connected(
        address,
        world.port,
        patience,
        f"{world.here}: nobody answers at {address}:{world.port} for {patience:.0f} s: has rank 0"
        " started, are MASTER_ADDR and MASTER_PORT its host's, is a firewall between?",
    )


def _agents(world: World, answer: float) -> TCPStore:
    """Return a connection to the store of torch's agent."""
    return _connected(
        world.address,
        world.port,
        answer,
        f"{world.here}: no store answers at {world.address}:{world.port}, which torchrun named;"
        " where the first host of an elastic run was lost or another became the first, set"
        " TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun on every host, as"
        " launch/torchrun_elastic.sh does",
    )


def _connected(address: str, port: int, patience: float, otherwise: str) -> TCPStore:
    """Return a client of the store at an address, once it is there; else fail with a message."""
    deadline = time.monotonic() + patience
    try:
        while True:  # torch would wait as well, and then log its own account in pages
            try:
                left = max(0.1, deadline - time.monotonic())
                socket.create_connection((address, port), timeout=left).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        return TCPStore(address, port, is_master=False, timeout=timedelta(seconds=patience))
    except (OSError, RuntimeError) as error:
        raise RunFailure(otherwise) from error


def _located(world: World) -> World:
    """Return ``world`` with its address: where no variable has it, rank 0 tells it over MPI."""
    if world.address:
        return world
    try:
        from mpi4py import MPI
    except ImportError:
        MPI = None
    if MPI is None or MPI.COMM_WORLD.size != world.world_size:
        why = "is not installed" if MPI is None else "is built for another MPI"
        raise UserError(
            f"{world.launcher} over several hosts needs MASTER_ADDR, the address of rank 0's host,"
            f" for every rank (mpirun -x MASTER_ADDR=HOST), or mpi4py, which {why}"
        )
    here: tuple[str, int] | str = ""
    if world.is_main:
        try:
            here = (own_address(), free_port())
        except UserError as error:  # which the others wait for, too
            here = str(error)
    told = MPI.COMM_WORLD.bcast(here, root=0)
    if isinstance(told, str):
        raise UserError(told)
    return replace(world, address=str(told[0]), port=int(told[1]))


def _known(world: World, patience: float) -> None:
    """Wait until the name of rank 0's host is known: hosts that start together learn it late."""
    deadline = time.monotonic() + patience
    while True:
        try:
            socket.getaddrinfo(world.address, world.port, type=socket.SOCK_STREAM)
            return
        except (OSError, UnicodeError) as error:
            if time.monotonic() > deadline:
                mistake = UserError(
                    f"{world.here}: MASTER_ADDR={world.address!r} is no host known here"
                    f" ({getattr(error, 'strerror', None) or error})"
                )
                mistake.one_rank = True
                raise mistake from error
        time.sleep(min(1.0, patience / 10))


def session(store: Store, rank: int, size: int, timeout: float) -> str:
    """Agree on a name for this start of ``size`` ranks, whatever earlier starts left in ``store``.

    Every rank but the first writes a fresh random word under its number and waits for an answer to
    this word. The first rank answers every word that it finds, old ones too, until all ranks have
    confirmed.

    Raises:
        RunFailure: a rank has not joined within ``timeout`` seconds, two ranks have one number, or
            ranks disagree on their number.
    """
    if rank > 0:
        word = os.urandom(8).hex()
        store.set(f"largebatch/word/{rank}", word)
        _await_answer(store, rank, word, timeout)
        name, _, ranks = store.get(f"largebatch/answer/{word}").decode().partition(" ")
        if ranks != str(size):
            raise RunFailure(f"rank {rank} is told of {size} ranks, rank 0 of {ranks}")
        if store.add(f"{name}/present/{rank}", 1) > 1:
            raise _second(rank)
        return name
    name = f"largebatch/{os.urandom(8).hex()}"
    absent, answered = set(range(1, size)), set()
    begun = time.monotonic()
    said = False
    while absent:
        for other in range(1, size):
            if other in absent and store.check([f"{name}/present/{other}"]):
                absent.remove(other)
            # Who is here, too: a second process of that number learns by its answer that it is one.
            if store.check([f"largebatch/word/{other}"]):
                word = store.get(f"largebatch/word/{other}").decode()
                if word not in answered:
                    store.set(f"largebatch/answer/{word}", f"{name} {size}")
                    answered.add(word)
        numbers = ", ".join(map(str, sorted(absent)[:20])) + ", ..." * (len(absent) > 20)
        waited = time.monotonic() - begun
        if absent and waited > timeout:
            raise RunFailure(f"rank 0: rank(s) {numbers} have not come in {timeout:.0f} s")
        if absent and waited > SAY_SECONDS and not said:
            print(f"rank 0 waits for rank(s) {numbers}", flush=True)
            said = True
        time.sleep(POLL_SECONDS if absent else 0)
    return name


def _await_answer(store: Store, rank: int, word: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > 0:
        try:
            # Less than a millisecond would mean without end.
            look = timedelta(seconds=min(max(left, 0.01), LOOK_SECONDS))
            store.wait([f"largebatch/answer/{word}"], look)
            return
        except RuntimeError:  # not yet: or will the answer be another's?
            if store.get(f"largebatch/word/{rank}").decode() != word:
                raise _second(rank) from None
    raise RunFailure(f"rank {rank}: rank 0 has not come in {timeout:.0f} s")


def _second(rank: int) -> RunFailure:
    return RunFailure(f"rank {rank}: another process has this number, too")
