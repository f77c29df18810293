"""Small agreements between ranks before and after training: shared values and errors.

Values are sent as JSON, so that nothing from a peer is executed.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from textwrap import shorten
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from largebatch._errors import RunFailure, UserError
from largebatch.processes.environment import World
from largebatch.processes.heartbeat import CONTINUE, Heartbeat

T = TypeVar("T")
MOST_BYTES = 2**26  # of one value: what a peer claims to send is not believed without end
MISTAKE = "largebatch/mistake"  # a key of the rendezvous store, which outlives a lost connection
SIGNS_OF_LOSS = (
    "closed by peer",
    "reset by peer",
    "Broken pipe",
    "Timed out",
    "timed out",
    "failed to connect",
)


def agreed(value: Any, world: World) -> Any:
    """Return rank 0's value (of JSON's types) on every rank."""
    if world.world_size == 1:
        return value
    text = json.dumps(value).encode() if world.is_main else b""
    size = torch.tensor(len(text), device=_device())
    dist.broadcast(size, src=0)
    message = _message(text, int(size), 0)
    dist.broadcast(message, src=0)
    return _value(message, 0)


def gathered(value: T, world: World) -> list[T]:
    """Return every rank's value (of JSON's types) on every rank."""
    if world.world_size == 1:
        return [value]
    text = json.dumps(value).encode()
    size = torch.tensor([len(text)], device=_device())
    sizes = [torch.empty_like(size) for _ in range(world.world_size)]
    dist.all_gather(sizes, size)
    lengths = [int(each) for each in sizes]
    largest = max(range(world.world_size), key=lengths.__getitem__)
    message = _message(text, lengths[largest], largest)
    messages = [torch.empty_like(message) for _ in lengths]
    dist.all_gather(messages, message)
    return [
        _value(found[:length], rank)
        for rank, (found, length) in enumerate(zip(messages, lengths, strict=True))
    ]


def together(work: Callable[[], T], world: World) -> T:
    """Do ``work`` on every rank; if any raises a UserError, all ranks raise the first."""
    mistake: UserError | None = None
    try:
        result = work()
    except UserError as error:
        if world.world_size == 1:
            raise
        mistake = error
    said = gathered(None if mistake is None else str(mistake), world)
    first = next((text for text in said if text is not None), None)
    if first is not None:
        raise UserError(str(first)) from mistake
    return result


def announce(mistake: UserError, world: World) -> None:
    """Tell the other ranks that a user's mistake ends the run, before this rank ends."""
    if world.world_size > 1:
        dist.distributed_c10d._get_default_store().set(MISTAKE, json.dumps(str(mistake)))


def require_same(values: Mapping[str, Any], world: World) -> None:
    """Compare named values, the same names on every rank, over the ranks.

    Raises:
        UserError: raised on every rank; the message names the first difference, its rank and both
            values.
    """
    everyone = gathered((socket.gethostname(), dict(values)), world)
    first_host, expected = everyone[0]
    for rank, (host, found) in enumerate(everyone):
        for name in {**expected, **found}:
            value, first = found.get(name), expected.get(name)
            if json.dumps(value) != json.dumps(first):  # as text: a NaN is like itself
                raise UserError(
                    f"{name}={value!r} on rank {rank} ({host}) but {first!r} on rank 0 "
                    f"({first_host}): every rank needs the same config and data"
                )


def lost_peer(error: RuntimeError, world: World, heartbeat: Heartbeat | None = None) -> Exception:
    """Return a one-line error that another rank is lost, if ``error`` means this.

    A rank that ended because of a user's mistake has announced and printed the mistake itself. Then
    the result is an empty :class:`UserError`, so that every rank exits with 2, whichever is first.
    """
    text = str(error)
    if world.world_size == 1 or not any(sign in text for sign in SIGNS_OF_LOSS):
        return error
    if _announced():
        return UserError("")
    account = heartbeat.account() if heartbeat is not None else ""
    lost = account or f"another rank has ended or is out of reach; {CONTINUE}"
    return RunFailure(f"rank {world.rank}: {lost} ({shorten(text.splitlines()[0], 120)})")


def _device() -> torch.device:
    """Return where the default group takes its messages."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _message(text: bytes, size: int, sender: int) -> torch.Tensor:
    """Return ``text`` in a tensor of ``size`` bytes, or as much room for another's."""
    if not 0 <= size <= MOST_BYTES:
        raise RunFailure(f"rank {sender} is to send a value of {size} bytes: it is no peer of ours")
    padded = bytearray(text.ljust(max(size, 1), b" "))
    return torch.frombuffer(padded, dtype=torch.uint8).to(_device())


def _value(message: torch.Tensor, sender: int) -> Any:
    try:
        return json.loads(bytes(message.tolist()))
    except ValueError as error:
        raise RunFailure(
            f"rank {sender} has sent what is no JSON: it is no peer of ours"
        ) from error


def _announced() -> bool:
    try:
        return bool(dist.distributed_c10d._get_default_store().check([MISTAKE]))
    except (RuntimeError, ValueError):  # the store went with the rank that held it
        return False
