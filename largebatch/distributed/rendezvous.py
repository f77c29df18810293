"""Where the ranks of one start meet: a store that none before them has used.

torch's elastic agent lends its ranks one store for as long as it lives. After a restart that store
still holds the addresses of the ranks that ended, and a back end takes them for those of its peers:
it connects to ports where nobody listens until its timeout. Nothing in the environment tells one
start from another on every agent alike, so the ranks settle it among themselves.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from largebatch._errors import RunFailure
from largebatch.distributed.environment import World

ANSWER_SECONDS = 60.0  # an agent's store is there before its ranks are
POLL_SECONDS = 0.02


def shared_store(world: World, timeout: float) -> Store:
    """Return a store that all ranks of this start share, and nobody before them.

    Raises:
        RunFailure: torchrun's store does not answer, or ranks stay away for ``timeout`` seconds.
    """
    patience = timedelta(seconds=timeout)
    if world.launcher != "torchrun" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return TCPStore(
            world.address, world.port, world.world_size, world.is_main, patience, multi_tenant=True
        )
    answer = timedelta(seconds=min(timeout, ANSWER_SECONDS))
    try:
        store = TCPStore(world.address, world.port, is_master=False, timeout=answer)
    except RuntimeError as error:
        raise RunFailure(
            f"{world.here}: no store answers at {world.address}:{world.port}, which torchrun named;"
            " where the first host of an elastic run was lost or another became the first, set"
            " TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun on every host, as"
            " launch/torchrun_elastic.sh does"
        ) from error
    store.set_timeout(patience)
    return PrefixStore(session(store, world.rank, world.world_size, timeout), store)


def session(store: Store, rank: int, size: int, timeout: float) -> str:
    """Agree on a name for this start of ``size`` ranks, whatever earlier starts left in ``store``.

    Every rank but the first leaves a fresh word under its number and waits for an answer to that
    very word. The first answers each word that it finds, old ones too, until all have confirmed.
    """
    if rank > 0:
        word = os.urandom(8).hex()
        store.set(f"largebatch/word/{rank}", word)
        try:
            store.wait([f"largebatch/answer/{word}"], timedelta(seconds=timeout))
        except RuntimeError as error:
            raise RunFailure(f"rank {rank}: rank 0 has not come in {timeout:.0f} s") from error
        name = store.get(f"largebatch/answer/{word}").decode()
        store.set(f"{name}/present/{rank}", "")
        return name
    name = f"largebatch/{os.urandom(8).hex()}"
    absent, answered = set(range(1, size)), set()
    deadline = time.monotonic() + timeout
    while absent:
        for other in sorted(absent):
            if store.check([f"{name}/present/{other}"]):
                absent.remove(other)
            elif store.check([f"largebatch/word/{other}"]):
                word = store.get(f"largebatch/word/{other}").decode()
                if word not in answered:
                    store.set(f"largebatch/answer/{word}", name)
                    answered.add(word)
        if absent and time.monotonic() > deadline:
            numbers = ", ".join(map(str, sorted(absent)))
            raise RunFailure(f"rank 0: rank(s) {numbers} have not come in {timeout:.0f} s")
        time.sleep(POLL_SECONDS if absent else 0)
    return name
