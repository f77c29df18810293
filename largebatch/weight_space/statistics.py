"""Recompute the running statistics of batch norms at weights outside of any training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from largebatch.nn import frozen_statistics

B = TypeVar("B")
SET = {"training": True, "momentum": None, "running": "sequential", "over_ranks": False}


@torch.no_grad()
def recompute_statistics(
    model: nn.Module, batches: Iterable[B], forward: Callable[[nn.Module, B], object]
) -> dict[str, Tensor]:
    """Return the running statistics that fit a model's present weights.

    The result is the mean of the statistics over batches (or over ghosts), as in
    ``torch.optim.swa_utils.update_bn`` (Izmailov et al. 2018; Garipov et al. 2018, section 3.3, for
    curves). All other modules are in evaluation mode. The model is restored afterwards.

    Args:
        batches: this rank's batches; together the ranks have each batch once. Every rank must call
            this.
        forward: calls the model with a batch.

    Returns:
        ``running_mean`` and ``running_var`` by their names in ``state_dict``; empty for a model
        without batch norm.
    """
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }
    if not norms:
        return {}
    with frozen_statistics(model), _averaging(list(norms.values())):
        for batch in batches:
            forward(model, batch)
        parts = [_part(norm) for norm in norms.values()]
    packed = torch.cat([part.flatten() for part in parts])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(packed)
    found = {}
    shares = packed.split([part.numel() for part in parts])
    for (name, norm), share in zip(norms.items(), shares, strict=True):
        head = f"{name}." if name else ""
        count, statistics = share[0], share[1:].view(2, -1)
        for buffer, total in zip(("running_mean", "running_var"), statistics, strict=True):
            own: Tensor = getattr(norm, buffer)
            found[f"{head}{buffer}"] = torch.where(count > 0, (total / count).to(own.dtype), own)
    return found


def _part(norm: _BatchNorm) -> Tensor:
    """Return [count, count x mean, count x variance] of what a norm has seen: float64, flat."""
    assert norm.num_batches_tracked is not None
    assert norm.running_mean is not None and norm.running_var is not None
    count = norm.num_batches_tracked.double().reshape(1)
    return torch.cat((count, norm.running_mean.double() * count, norm.running_var.double() * count))


@contextmanager
def _averaging(norms: list[_BatchNorm]) -> Iterator[None]:
    """Let norms take the plain mean of all batches from here on, of this rank alone."""
    before: list[dict[str, Any]] = []
    for norm in norms:
        own = {name: getattr(norm, name) for name in (*SET, "_alone") if hasattr(norm, name)}
        before.append(own)
        for name in own.keys() & SET.keys():
            setattr(norm, name, SET[name])
        for buffer in (norm.running_mean, norm.running_var, norm.num_batches_tracked):
            assert buffer is not None
            buffer.zero_()
    try:
        yield
    finally:
        for norm, own in zip(norms, before, strict=True):
            for name, value in own.items():
                setattr(norm, name, value)
