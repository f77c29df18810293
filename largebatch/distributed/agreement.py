"""What the ranks settle together before and after training: small objects, rare messages."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch.distributed as dist

from largebatch._errors import RunFailure, UserError
from largebatch.distributed.environment import World
from largebatch.distributed.heartbeat import CONTINUE, Heartbeat

T = TypeVar("T")
MISTAKE = "largebatch/mistake"  # a key of the rendezvous store, which outlives a lost connection
SIGNS_OF_LOSS = ("closed by peer", "reset by peer", "Broken pipe", "Timed out")


def agreed(value: Any, world: World) -> Any:
    """Return rank 0's value on every rank."""
    if world.world_size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gathered(value: T, world: World) -> list[T]:
    """Return every rank's value, on every rank."""
    if world.world_size == 1:
        return [value]
    values: list[Any] = [None] * world.world_size
    dist.all_gather_object(values, value)
    return values


def together(work: Callable[[], T], world: World) -> T:
    """Do ``work`` on every rank; if it is a user's mistake on any, all ranks raise the first."""
    mistake: UserError | None = None
    try:
        result = work()
    except UserError as error:
        mistake = error
    mistake = next((found for found in gathered(mistake, world) if found is not None), None)
    if mistake is not None:
        raise mistake
    return result


def announce(mistake: UserError, world: World) -> None:
    """Tell the other ranks, before this one ends, that a user's mistake ends the run."""
    if world.world_size > 1:
        dist.distributed_c10d._get_default_store().set(MISTAKE, str(mistake))


def require_same(values: Mapping[str, Any], world: World) -> None:
    """Compare named values, the same names on every rank, over the ranks.

    Raises:
        UserError: on every rank alike, naming the first that differs, where, and both values.
    """
    everyone = gathered((socket.gethostname(), dict(values)), world)
    first_host, expected = everyone[0]
    for rank, (host, found) in enumerate(everyone):
        for name, value in found.items():
            if value != expected[name]:
                raise UserError(
                    f"{name}={value!r} on rank {rank} ({host}) but {expected[name]!r} on rank 0 "
                    f"({first_host}): every rank needs the same config and data"
                )


def lost_peer(error: RuntimeError, world: World, heartbeat: Heartbeat | None = None) -> Exception:
    """Say in one line that another rank is gone, where that is what ``error`` means.

    A rank that ended over a user's mistake has announced it and says it itself: then the answer is
    an empty :class:`UserError`, so that every rank exits with 2 whichever is first.
    """
    text = str(error)
    if world.world_size == 1 or not any(sign in text for sign in SIGNS_OF_LOSS):
        return error
    if _announced():
        return UserError("")
    account = heartbeat.account() if heartbeat is not None else ""
    lost = account or f"another rank has ended or is out of reach; {CONTINUE}"
    return RunFailure(f"rank {world.rank}: {lost} ({text.splitlines()[0][:120]})")


def _announced() -> bool:
    try:
        return bool(dist.distributed_c10d._get_default_store().check([MISTAKE]))
    except (RuntimeError, ValueError):  # the store went with the rank that held it
        return False
