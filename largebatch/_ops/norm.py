"""``ghost_norm``: batch norm over ghost batches, by the L2, L1 or top-k deviation of a channel.

Ioffe and Szegedy 2015 (L2); Hoffer et al., "Norm matters", 2018, section 4 (L1, L-infinity, top-k);
Hoffer et al., "Train longer, generalize better", 2017, Algorithm 1 (ghost batches).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from largebatch._ops.dtypes import accumulate_dtype
from largebatch._ops.library import Operator, notice, register, register_autograd
from largebatch._ops.norm_layout import from_bits, in_layout, mask_size
from largebatch._ops.norm_reference import (
    NormPolicy,
    ghost_counts,
    normalized,
    reference_ghost_norm,
    reference_ghost_norm_backward,
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


def _keep_for_second_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    grad, x, weight, _, mask, *options = inputs
    ctx.save_for_backward(grad, x, weight, mask)
    ctx.options = options


def _second_backward(ctx: Any, *upstream: Tensor | None) -> tuple[Any, ...]:
    """Differentiate the gradient itself, by torch's own operations: rare, so not compiled.

    The statistics are functions of ``x``: all of the derivative goes to ``x``, none to them. Views
    keep apart what the arguments owe to each other; what is returned can be differentiated again.
    """
    grad, x, weight, mask = ctx.saved_tensors
    policy, top, ghost_size, full, eps, _ = ctx.options
    counts = ghost_counts(x.shape[0], ghost_size, full)
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = [
            t.view_as(t) if t.requires_grad else t.detach().requires_grad_()
            for t in (grad, x, weight)
            if t is not None
        ]
        g = inputs[0].to(accumulate_dtype(x.dtype))
        if mask.numel() > 0:
            g = torch.where(from_bits(mask, in_layout(x)), g, 0.0)
        y, _ = normalized(inputs[1], None, None, NormPolicy(policy), top, counts, eps)
        scaled = g if weight is None else g * inputs[2].view(1, -1, *[1] * (x.dim() - 2))
        (dx,) = torch.autograd.grad(y, inputs[1], scaled, create_graph=True)
        sums = [
            torch.stack([part.transpose(0, 1).flatten(1).sum(1) for part in values.split(counts)])
            for values in (g * y, g)
        ]
        outputs = (dx, torch.stack(sums), g.to(x.dtype))
        wanted = [
            (o, u) for o, u in zip(outputs, upstream, strict=True) if u is not None and u.numel()
        ]
        of_grad, of_x, *of_weight = torch.autograd.grad(
            [o for o, _ in wanted],
            inputs,
            [u for _, u in wanted],
            create_graph=create_graph,
            allow_unused=True,
        )
    return (of_grad, of_x, of_weight[0] if of_weight else None, *(None,) * 8)


register_autograd("ghost_norm", _backward, keep_for_backward)
register_autograd("ghost_norm_backward", _second_backward, _keep_for_second_backward)


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
    any order are right; those of the first are compiled.

    Args:
        x: (N, C, ...) with at least 2 dimensions and one value.
        weight: (C,) or None for 1.
        bias: (C,) or None for 0.
        ghost_size: samples of a ghost.
        full: ghosts of that size; samples that are left make one more ghost.
        eps: added to the mean square, or to the spread of the other norms.
        policy: which norm.
        top: values that TOP_K averages, at most all of a channel.
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
