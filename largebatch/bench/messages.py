"""Count every collective of a process, by a process group that passes all calls on to gloo.

Calls of all origins are seen: our engine, torch's DistributedDataParallel with its broadcast of
buffers (from C++), and functional collectives in a compiled graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

BACKEND = "recorded"
COLLECTIVES = (
    "allreduce",
    "allreduce_coalesced",
    "allgather",
    "_allgather_base",
    "allgather_coalesced",
    "allgather_into_tensor_coalesced",
    "alltoall",
    "alltoall_base",
    "barrier",
    "broadcast",
    "gather",
    "reduce",
    "_reduce_scatter_base",
    "reduce_scatter",
    "reduce_scatter_tensor_coalesced",
    "scatter",
    "send",
)


@dataclass(frozen=True)
class Message:
    """One collective.

    Attributes:
        kind: the process group's method.
        size: bytes of the result on one rank: for an all-reduce its tensor, for an all-gather the
            data of all ranks. For a send, the bytes sent.
        ranks: number of ranks in the group.
        label: label of the group by :func:`groups_of`.
    """

    kind: str
    size: int
    ranks: int
    label: str


messages: list[Message] = []
"""What this process has taken part in; clear it before what is to be counted."""
_label = "default"


class RecordingGroup(dist.ProcessGroup):
    """A gloo group on CPU that records each collective in ``messages``."""

    def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        cpu, kinds = torch.device("cpu"), dist.ProcessGroup.BackendType
        gloo = dist.ProcessGroupGloo(store, rank, size, timeout)
        self.inner = dist.ProcessGroup(store, rank, size)
        for group, kind in ((self.inner, kinds.GLOO), (self, kinds.CUSTOM)):
            group._register_backend(cpu, kind, gloo)
            group._set_default_backend(kind)
        self.label = _label

    def getBackendName(self) -> str:
        """Return the name of the back end."""
        return BACKEND

    def recv(self, *arguments: Any) -> Any:
        """Receive; the message is recorded by the sender."""
        return self.inner.recv(*arguments)


def _noted(kind: str) -> Callable[..., Any]:
    def collective(self: RecordingGroup, *arguments: Any, **options: Any) -> Any:
        results = arguments[0] if arguments else []
        size = sum(tensor.nbytes for tensor in _tensors(results))
        messages.append(Message(kind, size, self.size(), self.label))
        return getattr(self.inner, kind)(*arguments, **options)

    return collective


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _tensors(part)


for _kind in COLLECTIVES:
    if hasattr(dist.ProcessGroup, _kind):
        setattr(RecordingGroup, _kind, _noted(_kind))


def register() -> None:
    """Register the back end ``recorded`` with ``dist.init_process_group``."""
    dist.Backend.register_backend(BACKEND, RecordingGroup, devices=["cpu"])


@contextmanager
def groups_of(label: str) -> Iterator[None]:
    """Label the groups that are made inside a ``with`` block."""
    global _label
    before, _label = _label, label
    try:
        yield
    finally:
        _label = before
