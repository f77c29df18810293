"""Make process groups directly from a store, without c10d's global bookkeeping."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store

BackendType = dist.ProcessGroup.BackendType


def connect(
    store: Store, rank: int, size: int, timeout: timedelta, device: torch.device
) -> dist.ProcessGroup:
    """Join ``size`` ranks that share ``store`` into a group for tensors on ``device``.

    Unlike ``dist.new_group``, only members have to call this, and no default group is needed. So it
    can be used while a default group is being made. CPU tensors are sent by gloo, CUDA tensors by
    NCCL.
    """
    group = dist.ProcessGroup(store, rank, size)
    add_backend(group, store, timeout, device)
    return group


def add_backend(
    group: dist.ProcessGroup, store: Store, timeout: timedelta, device: torch.device
) -> None:
    """Let ``group`` carry tensors on ``device`` too."""
    rank, size = group.rank(), group.size()
    store = PrefixStore(f"{device.type}/", store)
    backend: Any
    if device.type == "cuda":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timeout
        backend, kind = dist.ProcessGroupNCCL(store, rank, size, options), BackendType.NCCL
    else:
        backend = dist.ProcessGroupGloo(store, rank, size, timeout=timeout)
        kind = BackendType.GLOO
    group._register_backend(device, kind, backend)
    group._set_default_backend(kind)
