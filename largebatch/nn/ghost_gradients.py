"""The gradients of a norm's weight and bias ghost by ghost, which its backward has anyway.

Their squared lengths give an estimate of the gradient noise scale on one process, at no extra pass:
McCandlish, Kaplan, Amodei, "An empirical model of large-batch training", 2018, appendix A.1, with
the ghost batch as the small batch and the whole step as the large one.
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
    """Do what ``largebatch._ops.ghost_norm`` does; its backward calls ``observer`` once.

    Not for second derivatives, which the plain function has.
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
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        outputs: tuple[Tensor, Tensor, Tensor] = torch.ops.largebatch.ghost_norm(*inputs[:-1])
        return outputs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        keep_for_backward(ctx, inputs[:-1], output)
        ctx.observer = inputs[-1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
        gradients, sums = norm_backward(ctx, grad)
        if sums is not None:
            ctx.observer(sums)
        return (*gradients, None)


def noise_scale_terms(gradients: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Estimate |G|^2 and tr(Sigma) from gradients of ghosts, both without bias.

    With B = sum of the sizes b_i and g_i the mean gradient of ghost i, E|g_i|^2 = |G|^2 +
    tr(Sigma) / b_i and E|g|^2 = |G|^2 + tr(Sigma) / B for their mean g weighted by size. The
    noise scale is tr(Sigma) / |G|^2; average both over steps before dividing.

    Args:
        gradients: (ghosts, n), at least two: what each ghost adds to the gradient of a loss that
            is the mean over the B samples; columns are parameters.
        sizes: samples of each ghost.

    Returns:
        |G|^2 and tr(Sigma), the trace of the covariance of one sample's gradient: scalars.
    """
    if len(sizes) != gradients.shape[0] or len(sizes) < 2:
        raise ValueError(f"{len(sizes)} sizes for {gradients.shape[0]} ghosts: at least 2 of each")
    counts = torch.tensor(sizes, dtype=gradients.dtype, device=gradients.device)
    batch = counts.sum()
    # Weighted by b_i the small batches' mean of 1 / b_i is ghosts / B.
    small = (gradients.square().sum(1) * batch.square() / counts).sum() / batch
    large = gradients.sum(0).square().sum()
    trace = (small - large) * batch / (len(sizes) - 1)
    return large - trace / batch, trace
