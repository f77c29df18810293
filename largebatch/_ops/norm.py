"""``ghost_norm``: batch norm over ghost batches, by the L2, L1 or top-k deviation of a channel.

Ioffe and Szegedy 2015 (L2); Hoffer et al., "Norm matters", 2018, section 4 (L1, L-infinity, top-k);
Hoffer et al., "Train longer, generalize better", 2017, Algorithm 1 (ghost batches).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from largebatch._ops.derivatives import register_autograd
from largebatch._ops.dtypes import accumulate_dtype
from largebatch._ops.library import Operator, notice, register
from largebatch._ops.norm_layout import in_layout, mask_size
from largebatch._ops.norm_reference import (
    NormPolicy,
    ghost_counts,
    normalized,
    reference_ghost_norm,
    reference_ghost_norm_backward,
    stacked,
)


def _fake_ghost_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    policy: int,
    top: int,
    ghost_size: int,
    full: int,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    x = in_layout(x)
    ghosts = len(ghost_counts(x.shape[0], ghost_size, full))
    rows = 3 if policy == NormPolicy.TOP_K else 2
    statistics = x.new_empty((rows, ghosts, x.shape[1]), dtype=accumulate_dtype(x.dtype))
    mask = x.new_empty((mask_size(x) if relu else 0,), dtype=torch.uint8)
    return torch.empty_like(x), statistics, mask


def _fake_ghost_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    mask: Tensor,
    policy: int,
    top: int,
    ghost_size: int,
    full: int,
    eps: float,
    residual: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    x = in_layout(x)
    masked = residual and mask.numel() > 0
    return (
        torch.empty_like(x),
        statistics.new_empty((2, *statistics.shape[1:])),
        torch.empty_like(x) if masked else x.new_empty((0,)),
    )


register(
    Operator(
        "ghost_norm(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, int policy, int top, "
        "int ghost_size, int full, float eps, bool relu) -> (Tensor, Tensor, Tensor)",
        reference_ghost_norm,
        _fake_ghost_norm,
    ),
    Operator(
        "ghost_norm_backward(Tensor grad, Tensor x, Tensor? weight, Tensor statistics, "
        "Tensor mask, int policy, int top, int ghost_size, int full, float eps, bool residual) "
        "-> (Tensor, Tensor, Tensor)",
        reference_ghost_norm_backward,
        _fake_ghost_norm_backward,
    ),
)


def keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Save what :func:`norm_backward` needs."""
    x, weight, bias, residual, *options = inputs
    _, statistics, mask = output
    ctx.save_for_backward(x, weight, statistics, mask)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(statistics, mask)
    ctx.has_bias, ctx.has_residual = bias is not None, residual is not None
    ctx.options = options[:-1]  # all but relu, which the mask shows


def norm_backward(ctx: Any, grad: Tensor | None) -> tuple[tuple[Any, ...], Tensor | None]:
    """Return the gradients of ``ghost_norm``'s arguments, and (2, ghosts, C) of weight and bias."""
    nothing = (None,) * 6
    if grad is None:
        return (None, None, None, None, *nothing), None
    x, weight, statistics, mask = ctx.saved_tensors
    dx, sums, dresidual = torch.ops.largebatch.ghost_norm_backward(
        grad, x, weight, statistics, mask, *ctx.options, ctx.has_residual
    )
    of_weight, of_bias = sums.sum(1)
    if ctx.has_residual and dresidual.numel() == 0:
        dresidual = grad
    gradients = (
        dx,
        None if weight is None else of_weight,
        of_bias if ctx.has_bias else None,
        dresidual if ctx.has_residual else None,
        *nothing,
    )
    return gradients, sums


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    return norm_backward(ctx, grad)[0]


def differentiable_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    mask: Tensor,
    policy: int,
    top: int,
    ghost_size: int,
    full: int,
    eps: float,
    residual: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradient by torch's own operations, which can differentiate it again.

    The statistics are functions of ``x``, so the whole derivative goes to ``x``.
    """
    counts = ghost_counts(x.shape[0], ghost_size, full)
    _, found = normalized(x, None, None, NormPolicy(policy), top, counts, eps)
    options = policy, top, ghost_size, full, eps, residual
    return reference_ghost_norm_backward(grad, x, weight, stacked(found), mask, *options)


def _keep_for_second_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, policy, top, ghost_size, full, eps, residual = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)
    ctx.options = policy, top, ghost_size, full, eps, residual


def _second_backward(ctx: Any, *upstream: Tensor | None) -> tuple[Any, ...]:
    """Differentiate the gradient itself: rare, so not compiled."""
    saved, wanted = ctx.saved_tensors, [index for index, u in enumerate(upstream) if u is not None]
    if not wanted:
        return (None,) * 11
    needed = [index for index, needs in enumerate(ctx.needs_input_grad[:5]) if needs]

    def outputs(*tensors: Tensor) -> list[Tensor]:
        given = dict(zip(needed, tensors, strict=True))
        found = differentiable_backward(
            *(given.get(index, tensor) for index, tensor in enumerate(saved)), *ctx.options
        )
        return [found[index] for index in wanted]

    # Unlike torch.autograd.grad this can be in the middle of any transform of torch.func.
    _, pull_back = torch.func.vjp(  # type: ignore[misc]
        outputs, *(saved[index] for index in needed)
    )
    gradients = dict(zip(needed, pull_back([upstream[index] for index in wanted]), strict=True))
    return *(gradients.get(index) for index in range(5)), *(None,) * 6


def _differentiable_norm(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    y, statistics, mask = reference_ghost_norm(*args)
    with torch.no_grad(), forward_ad._set_fwd_grad_enabled(False):
        return y, statistics.clone(), mask


register_autograd("ghost_norm", _backward, keep_for_backward, _differentiable_norm)
register_autograd(
    "ghost_norm_backward", _second_backward, _keep_for_second_backward, differentiable_backward
)


def ghost_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    ghost_size: int,
    full: int,
    eps: float,
    policy: NormPolicy = NormPolicy.L2,
    top: int = 1,
    residual: Tensor | None = None,
    relu: bool = False,
) -> tuple[Tensor, Tensor]:
    """Normalise each channel of each ghost batch of ``x`` by its own mean and spread.

    With d = x - mean over a channel of a ghost::

        y = weight d r + bias (+ residual) (through a ReLU)
        r = 1 / sqrt(mean d^2 + eps)                      L2
        r = 1 / (sqrt(pi/2) mean |d| + eps)               L1
        r = 1 / (C(n) mean of the top largest |d| + eps)  TOP_K, see ``norm_constant``

    Statistics are float64 for float64 ``x``, else float32, and free of cancellation. Gradients of
    any order are supported; first-order ones are compiled.

    Args:
        x: (N, C, ...) with at least 2 dimensions and one value.
        weight: (C,) or None for 1.
        bias: (C,) or None for 0.
        ghost_size: samples in a ghost.
        full: number of ghosts of this size; remaining samples make one more ghost.
        eps: added to the mean square, or to the spread of the other norms.
        policy: the norm that measures the spread.
        top: number of values that TOP_K averages, at most all of a channel.
        residual: added before the ReLU; of the shape and type of ``x``.
        relu: whether to end in a ReLU, whose mask is kept as bits.

    Returns:
        y in the type and layout of ``x`` (contiguous unless the channels vary fastest), and the
        statistics (2 or 3, ghosts, C), outside of autograd: the mean; the spread (L2: the biased
        variance; L1: the mean absolute deviation; TOP_K: the mean of the largest), and for TOP_K
        the smallest of them.
    """
    notice("ghost_norm", [x])
    dtype = accumulate_dtype(x.dtype)
    y, statistics, _ = torch.ops.largebatch.ghost_norm(
        x,
        None if weight is None else weight.to(dtype),
        None if bias is None else bias.to(dtype),
        residual,
        int(policy),
        top,
        ghost_size,
        full,
        eps,
        relu,
    )
    return y, statistics
