"""Tensors of which every rank holds a part (DTensors, as FSDP2 makes them), and whole ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from largebatch import _ops


def is_sharded(tensor: Tensor) -> bool:
    """Tell whether this rank may hold a part only."""
    return isinstance(tensor, DTensor)


def whole(value: Any) -> Any:
    """Return a nested dict, list or tuple with its DTensors gathered; all else as it is.

    Every rank must call it with the same structure.
    """
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(whole(item) for item in value)
    return value


@torch.no_grad()
def part_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return ``tensor`` divided among the ranks as ``like`` is, if that has its shape.

    All ranks hold the whole of it, so nothing is sent. Where ``like`` is no DTensor, or has another
    shape, ``tensor`` itself is returned.
    """
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor) or tensor.shape != like.shape:
        return tensor
    mesh = like.device_mesh
    return distribute_tensor(tensor.to(like.device), mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def whole_norm(tensors: Iterable[Tensor]) -> float:
    """Return the Euclidean norm of all elements together, wherever they lie.

    Every rank must call it if any of ``tensors`` is a DTensor; they are all of one mesh.
    """
    tensors = list(tensors)
    sharded = [tensor for tensor in tensors if isinstance(tensor, DTensor)]
    if not sharded:
        return float(_ops.global_norm(tensors))
    square = _ops.global_norm([tensor.to_local() for tensor in sharded]).double().square()
    mesh, placements = sharded[0].device_mesh, sharded[0].placements
    for dimension, placement in enumerate(placements):
        if placement.is_shard():
            dist.all_reduce(square, group=mesh.get_group(dimension))
    rest = [tensor for tensor in tensors if not isinstance(tensor, DTensor)]
    return float((square + _ops.global_norm(rest).double().square()).sqrt())
