"""Back end ``torus`` of torch.distributed: our all-reduce, and else the calls of a flat group.

A script needs ``import largebatch.distributed`` and ``init_process_group("torus")``, and no other
change. From torch 2.15 on an entry point makes the import unnecessary.
"""

from __future__ import annotations

import atexit
import os
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store

from largebatch._errors import UserError
from largebatch.distributed.all_reduce import AllReduce
from largebatch.distributed.contiguous import apart, on_contiguous, require_place
from largebatch.distributed.pending import together
from largebatch.distributed.preference import Preference
from largebatch.distributed.topology import Topology
from largebatch.processes.connect import BackendType, add_backend, connect
from largebatch.processes.ending import WAIT_SECONDS

SUM, AVG = dist.ReduceOp.SUM, dist.ReduceOp.AVG
KINDS = {"cpu": BackendType.GLOO, "cuda": BackendType.NCCL}

# What ProcessGroup offers under two names in several versions of torch, and we only pass on.
PASSED_ON = (
    "_allgather_base",
    "_end_coalescing",
    "_reduce_scatter_base",
    "_start_coalescing",
    "all_gather_single",
    "all_gather_single_coalesced",
    "all_to_all_single",
    "allgather",
    "allgather_coalesced",
    "allgather_into_tensor_coalesced",
    "alltoall",
    "alltoall_base",
    "broadcast",
    "gather",
    "gather_into_tensor",
    "gather_single",
    "recv",
    "recv_anysource",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_single",
    "reduce_scatter_single_coalesced",
    "reduce_scatter_tensor_coalesced",
    "scatter",
    "send",
)

IN_PLACE = ("broadcast", "recv", "recv_anysource", "reduce")  # of these, what write their tensors


class TorusGroup(dist.ProcessGroup):
    """A process group on top of a flat one (gloo or NCCL).

    Args:
        store, rank, size, timeout: as for every back end. The timeout holds for every step.
        preference: the user's choice from environment variables.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        timeout: timedelta,
        preference: Preference,
    ) -> None:
        super().__init__(rank, size)
        self._store, self.timeout, self._name = store, timeout, ""
        self.flat: Any = connect(
            PrefixStore("flat", store), rank, size, timeout, torch.device("cpu")
        )
        if torch.cuda.is_available():
            device = torch.device("cuda", torch.cuda.current_device())
            add_backend(self.flat, PrefixStore("flat", store), timeout, device)
        # torch asks the group which devices it serves, before it calls monitored_barrier for one.
        for device in self.flat._device_types:
            self._register_backend(device, KINDS[device.type], self.flat._get_backend(device))
            self._set_default_backend(KINDS[device.type])
        self._preference = preference
        self._reducers: dict[str, AllReduce] = {}
        # All-reduces that a barrier is to wait for, and the end of this process.
        self._begun: deque[dist.Work] = deque()
        self._process = os.getpid()
        _groups.add(self)

    def reducer(self, device: torch.device) -> AllReduce:
        """Return the all-reduce for tensors on ``device``; the first call is a collective one."""
        if device.type not in self._reducers:
            self._reducers[device.type] = AllReduce(
                self._store, self.flat, self.timeout, device, self._preference
            )
        return self._reducers[device.type]

    def allreduce(self, tensors: list[Tensor] | Tensor, opts: Any = SUM, *_: Any) -> dist.Work:
        """Reduce in place; sums and means of one tensor may take the torus.

        As in c10d, several tensors are also reduced with each other, and all get the result.
        """
        given = [tensors] if isinstance(tensors, Tensor) else tensors
        operation = getattr(opts, "reduceOp", opts)  # which compares from the left alone
        mean = operation == AVG
        single = len(given) == 1 and not given[0].is_sparse
        if (mean or operation == SUM) and single and self.size() > 1:
            return self._remember(self.reducer(given[0].device).start(given[0], mean=mean))
        for tensor in given:
            require_place(tensor)
        options = opts
        if not isinstance(opts, dist.AllreduceOptions):
            options = dist.AllreduceOptions()
            options.reduceOp = operation
        return self._remember(on_contiguous(self.flat.allreduce, given, options))

    def allreduce_coalesced(self, tensors: list[Tensor], opts: Any = None) -> dist.Work:
        """Reduce several tensors in place; the work's value is all of them.

        The tensors may share memory: all are read before one is written.
        """
        if not tensors:
            raise RuntimeError("an all-reduce requires a non-empty tensor list")
        operation = SUM if opts is None else getattr(opts, "reduceOp", opts)
        for tensor in tensors:
            require_place(tensor)
        separate = apart(tensors)
        works = [self.allreduce([tensor], operation) for tensor in separate]
        return self._remember(together(works, separate, tensors))

    def barrier(self, *args: Any, **options: Any) -> dist.Work:
        """Wait for all ranks, and for all-reduces begun earlier."""
        self._settle()
        return self.flat.barrier(*args, **options)

    def monitored_barrier(self, *args: Any, **options: Any) -> None:
        """Wait for all ranks; the error names missing ranks (by torch.distributed from 2.15 on)."""
        self._settle()
        self.flat.monitored_barrier(*args, **options)

    def _remember(self, work: dist.Work) -> dist.Work:
        while self._begun and self._begun[0].is_completed():
            self._begun.popleft()
        self._begun.append(work)
        return work

    def _settle(self) -> None:
        while self._begun:
            self._begun.popleft().wait()

    def end(self) -> None:
        """Wait for all-reduces begun earlier, for ``WAIT_SECONDS`` at most, done or failed.

        A forked child waits for none: its threads are its parent's.
        """
        until = time.monotonic() + WAIT_SECONDS
        while self._begun and os.getpid() == self._process:
            with suppress(Exception):  # nobody is left who could be told
                left = max(until - time.monotonic(), 0.001)
                self._begun.popleft().wait(timedelta(seconds=left))

    def getBackendName(self) -> str:
        """Return the name given to ``init_process_group``."""
        return "torus"

    def _get_backend(self, device: torch.device) -> Any:
        return self.flat._get_backend(device)

    def _set_group_name(self, name: Any) -> None:
        super()._set_group_name(name)
        self._name = name  # torch asks for it even when it has struck the group off its own list

    @property
    def pg_name(self) -> str:
        """Return the name under which torch knows the group."""
        return self._name

    @property
    def group_name(self) -> Any:
        """Return the name under which torch knows the group."""
        return self._name


_groups: weakref.WeakSet[TorusGroup] = weakref.WeakSet()


@atexit.register
def _end_groups() -> None:
    """End what the groups have begun, before their algorithms close."""
    for group in list(_groups):
        group.end()


def process_group(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    """Return ``group``, or the default group.

    Raises:
        UserError: there is no default group yet.
    """
    found = group or (dist.group.WORLD if dist.is_initialized() else None)
    if found is None:
        raise UserError("no process group: call torch.distributed.init_process_group before")
    return found


def all_reduce_over(
    name: str,
    group: dist.ProcessGroup | None,
    device: torch.device,
    preference: Preference,
    topology: Topology | None = None,
) -> AllReduce:
    """Make an all-reduce over the ranks of a group of any back end; a collective call.

    Args:
        name: name of the caller; each all-reduce has its own prefix in the group's store.
        group: the process group; None: the default group.
        device, preference, topology: as for :class:`AllReduce`.
    """
    whole: Any = process_group(group)
    store = dist.distributed_c10d._world.pg_map[whole][1]
    assert store is not None
    flat: Any
    if isinstance(whole, TorusGroup):
        timeout, flat = whole.timeout, whole.flat
    else:
        # Not held: a group that torch destroys is to go, with its sockets and threads.
        timeout, flat = whole._get_backend(device).options._timeout, weakref.proxy(whole)
    # Counted by group: the call is collective, so all its ranks count alike, also one whose process
    # took the place of another.
    made = _made.setdefault(whole, Counter())
    made[name] += 1
    prefix = PrefixStore(f"largebatch/{name}/{made[name]}", store)
    return AllReduce(prefix, flat, timeout, device, preference, topology)


_made: weakref.WeakKeyDictionary[dist.ProcessGroup, Counter[str]] = weakref.WeakKeyDictionary()


def _pass_on(name: str) -> Callable[..., Any]:
    def forward(self: TorusGroup, *args: Any, **options: Any) -> Any:
        if name in IN_PLACE:
            for tensor in args[0]:
                require_place(tensor)
        return on_contiguous(getattr(self.flat, name), *args, **options)

    forward.__name__ = name
    return forward


for _name in PASSED_ON:
    if hasattr(dist.ProcessGroup, _name):
        setattr(TorusGroup, _name, _pass_on(_name))


def _create(options: Any, _: object) -> TorusGroup:
    preference = Preference.from_environment()
    if options.global_ranks_in_group:  # a part of the ranks: the grid is that of all of them
        preference = replace(preference, grid=None)
    return TorusGroup(
        options.store, options.group_rank, options.group_size, options.timeout, preference
    )


def register() -> None:
    """Register the back end with torch; nothing is imported or connected yet."""
    if "TORUS" not in dist.Backend._plugins:
        dist.Backend.register_backend("torus", _create, True, devices=["cpu", "cuda"])
