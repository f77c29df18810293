"""The global norm of all gradients, also when parts lie on several devices or ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from largebatch import _ops
from largebatch.optim.bundle import Fragments, ranks_of
from largebatch.optim.parameters import check_dense, local


def norm_parts(
    name: str, params: Sequence[Tensor], fragments: Mapping[Tensor, Fragments] | None = None
) -> list[Tensor]:
    """Return tensors of one device whose joint norm is that of the gradients of ``params``.

    If all gradients lie whole on one device, the result is the gradients themselves. Otherwise it
    is one norm per part. A part is a device, or a set of ranks that hold shards of the same
    tensors. Such ranks sum one number, so all of them must call.

    Args:
        name: name of the caller, for error messages.
        params: parameters; those without a gradient are left out.
        fragments: layouts of flat parameters, as given to ``LayerwiseOptimizer.shard``.

    Raises:
        UserError: a sparse gradient.
    """
    parts: dict[tuple[torch.device, tuple[Any, ...]], list[Tensor]] = {}
    for param in params:
        if param.grad is not None:
            ranks = ranks_of(param, fragments or {})
            parts.setdefault((param.device, ranks), []).append(local(param.grad))
    for grads in parts.values():
        check_dense(name, grads)
    if len(parts) <= 1 and not any(ranks for _, ranks in parts):
        return next(iter(parts.values()), [])
    first = next(iter(parts))[0]
    norms = []
    for (_, ranks), grads in parts.items():
        square = _ops.global_norm(grads).double().square()
        for group in ranks:
            dist.all_reduce(square, group=group)
        norms.append(square.sqrt().to(first))
    return norms
