"""Convert between sharded tensors (DTensors, as FSDP2 makes them) and whole tensors."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor

from largebatch import _ops

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(value: Any) -> TypeGuard[DTensor]:
    """Return whether ``value`` is a DTensor, of which this rank may hold a part only."""
    # Its module takes most of a second to load, in every process; who has one has loaded it.
    # Another thread may be loading it just now: then it has no such class yet.
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    return kind is not None and isinstance(value, kind)


def whole(value: Any) -> Any:
    """Return a nested dict, list or tuple with its DTensors gathered and all else unchanged.

    Every rank must call this with the same structure.
    """
    if is_sharded(value):
        return value.full_tensor()
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(whole(item) for item in value)
    return value


@torch.no_grad()
def part_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return ``tensor`` sharded in the same way as ``like``, if both have the same shape.

    All ranks must hold the whole ``tensor``, so nothing is sent. If ``like`` is not a DTensor or
    has another shape, ``tensor`` itself is returned.
    """
    if not is_sharded(like) or is_sharded(tensor) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh = like.device_mesh
    return distribute_tensor(tensor.to(like.device), mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def whole_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Return the Euclidean norm of all elements together, wherever they lie: 0-d.

    Every rank must call this if any of ``tensors`` is a DTensor. All must be of one mesh.
    """
    tensors = list(tensors)
    sharded = [tensor for tensor in tensors if is_sharded(tensor)]
    if not sharded:
        return _ops.global_norm(tensors)
    square = _ops.global_norm([tensor.to_local() for tensor in sharded]).double().square()
    mesh, placements = sharded[0].device_mesh, sharded[0].placements
    for dimension, placement in enumerate(placements):
        if placement.is_shard():
            dist.all_reduce(square, group=mesh.get_group(dimension))
    rest = [tensor for tensor in tensors if not is_sharded(tensor)]
    return (square + _ops.global_norm(rest).double().square()).sqrt()
