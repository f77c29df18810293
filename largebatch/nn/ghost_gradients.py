"""Observe the gradients of a norm's weight and bias separately for each ghost batch.

The backward pass computes these gradients anyway. Their squared norms give an estimate of the
gradient noise scale on one process, without an extra pass: see ``largebatch.probes.noise_terms``,
with the ghosts as the groups of a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from largebatch._ops import NormPolicy, accumulate_dtype
from largebatch._ops.norm import keep_for_backward, norm_backward

Observer = Callable[[Tensor], None]
"""Takes (2, ghosts, C): the gradients of weight and bias by every ghost of a forward."""

_GHOST_NORM = torch.ops.largebatch.ghost_norm.default


def observed_ghost_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    observer: Observer,
    *,
    ghost_size: int,
    full: int,
    eps: float,
    policy: NormPolicy = NormPolicy.L2,
    top: int = 1,
    residual: Tensor | None = None,
    relu: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute ``largebatch._ops.ghost_norm``; its backward pass calls ``observer`` once.

    Second derivatives are not supported; the plain function has them.
    """
    wide = accumulate_dtype(x.dtype)
    y, statistics, _ = _Observed.apply(
        x,
        None if weight is None else weight.to(wide),
        None if bias is None else bias.to(wide),
        residual,
        int(policy),
        top,
        ghost_size,
        full,
        eps,
        relu,
        observer,
    )
    return y, statistics


class _Observed(torch.autograd.Function):
    # Not with setup_context: then torch looks at this signature at every call, for 0.3 ms.
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        # Straight to the kernel: a step of many norms has no time for the way through derivatives.
        with torch._C._AutoDispatchBelowAutograd():
            outputs: tuple[Tensor, Tensor, Tensor] = _GHOST_NORM(*inputs[:-1])
        keep_for_backward(ctx, inputs[:-1], outputs)
        ctx.observer = inputs[-1]
        return outputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
        gradients, sums = norm_backward(ctx, grad)
        if sums is not None:
            ctx.observer(sums)
        return (*gradients, None)
