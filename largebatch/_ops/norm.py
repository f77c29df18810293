"""``ghost_norm``: batch norm over ghost batches, by the L2, L1 or top-k deviation of a channel.

Ioffe and Szegedy 2015 (L2); Hoffer et al., "Norm matters", 2018, section 4 (L1, L-infinity, top-k);
Hoffer et al., "Train longer, generalize better", 2017, Algorithm 1 (ghost batches).
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from largebatch._ops.dtypes import accumulate_dtype
from largebatch._ops.library import Operator, notice, register, register_autograd
from largebatch._ops.norm_layout import from_bits, in_layout, mask_size, to_bits


class NormPolicy(IntEnum):
    """What measures the spread of a channel in a ghost batch; numbered as in ``csrc/norm/math.h``.

    L2: the mean of squares, under a root. L1: the mean of absolute deviations. TOP_K: the mean of
    the k largest absolute deviations; k = 1 is the L-infinity norm.
    """

    L2 = 0
    L1 = 1
    TOP_K = 2


def norm_constant(policy: NormPolicy, count: int) -> float:
    """Return what makes a spread of ``count`` values an estimate of the standard deviation.

    L1: sqrt(pi/2), exact for normally distributed values. Top-k: the published constant for the
    largest of n values, 0.5 (1 + sqrt(pi ln 4)) / sqrt(2 ln n), for every k, as in the paper's
    code; on normal values it gives 1.4 times the deviation at k = 1, and 1.0 to 1.35 at k = 10.
    """
    if policy == NormPolicy.L2:
        return 1.0
    if policy == NormPolicy.L1:
        return math.sqrt(math.pi / 2)
    return 0.5 * (1 + math.sqrt(math.pi * math.log(4))) / math.sqrt(2 * math.log(max(count, 2)))


def ghost_counts(samples: int, ghost_size: int, full: int) -> list[int]:
    """Return the samples of each ghost: ``full`` times ``ghost_size``, then those that are left."""
    left = samples - full * ghost_size
    return [ghost_size] * full + ([left] if left > 0 else [])


def _spread(deviation: Tensor, policy: NormPolicy, top: int) -> tuple[Tensor, Tensor | None]:
    """Return a channel's spread and, for top-k, its k-th largest deviation, (C,) each."""
    if policy == NormPolicy.L2:
        return deviation.square().mean(1), None
    if policy == NormPolicy.L1:
        return deviation.abs().mean(1), None
    largest = deviation.abs().topk(min(top, deviation.shape[1]), dim=1).values
    return largest.mean(1), largest[:, -1]


def _inverse(spread: Tensor, policy: NormPolicy, count: int, eps: float) -> Tensor:
    if policy == NormPolicy.L2:
        return (spread + eps).rsqrt()
    return 1.0 / (norm_constant(policy, count) * spread + eps)


def _normalized(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    policy: NormPolicy,
    top: int,
    counts: list[int],
    eps: float,
) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor | None]]]:
    """Normalise ghost after ghost, in the accumulation type, by differentiable operations."""
    done, statistics = [], []
    for ghost in x.to(accumulate_dtype(x.dtype)).split(counts):
        values = ghost.transpose(0, 1).flatten(1)
        mean = values.mean(1)
        deviation = values - mean.unsqueeze(1)
        spread, kth = _spread(deviation, policy, top)
        y = deviation * _inverse(spread, policy, values.shape[1], eps).unsqueeze(1)
        y = y if weight is None else y * weight.unsqueeze(1)
        y = y if bias is None else y + bias.unsqueeze(1)
        done.append(y.unflatten(1, (ghost.shape[0], *ghost.shape[2:])).transpose(0, 1))
        statistics.append((mean, spread, kth))
    return torch.cat(done), statistics


def reference_ghost_norm(
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
    """Specify ``largebatch::ghost_norm``; :func:`ghost_norm` says what the arguments mean."""
    x = in_layout(x)
    counts = ghost_counts(x.shape[0], ghost_size, full)
    y, statistics = _normalized(x, weight, bias, NormPolicy(policy), top, counts, eps)
    if residual is not None:
        y = y + residual.to(y.dtype)
    mask = torch.empty(0, dtype=torch.uint8, device=x.device)
    if relu:
        mask = to_bits(~(y <= 0), x)
        y = y.relu()
    rows = [
        torch.stack([part for part in parts if part is not None])
        for parts in zip(*statistics, strict=True)
        if parts[0] is not None
    ]
    return torch.empty_like(x).copy_(y), torch.stack(rows), mask


def reference_ghost_norm_backward(
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
    """Specify ``largebatch::ghost_norm_backward``, with d = x - mean and r as in ``_inverse``.

    d(weight) = r sum(g d), d(bias) = sum(g), and with n values a channel and w = weight:
    dx = w r (g - mean(g) - s), where s is d r^2 sum(g d) / n for L2; r sum(g d) C (e - mean(e))
    for the others, where e = sign(d) / n for L1 and sign(d) / k at the k largest for top-k (equal
    values share what is left of k).
    """
    norm, x = NormPolicy(policy), in_layout(x)
    dtype = accumulate_dtype(x.dtype)
    counts = ghost_counts(x.shape[0], ghost_size, full)
    upstream = grad.to(dtype)
    relu = mask.numel() > 0
    if relu:
        upstream = torch.where(from_bits(mask, x), upstream, 0.0)
    done, sums = [], []
    for index, (ghost, g) in enumerate(
        zip(x.to(dtype).split(counts), upstream.split(counts), strict=True)
    ):
        values, g = (t.transpose(0, 1).flatten(1) for t in (ghost, g))
        n = values.shape[1]
        mean, spread = statistics[:2, index].unsqueeze(-1)
        r = _inverse(spread, norm, n, eps)
        d = values - mean
        product = (g * d).sum(1, keepdim=True)
        if norm == NormPolicy.L2:
            pull = d * r.square() * product / n
        else:
            if norm == NormPolicy.L1:
                carrier = d.sign() / n
            else:
                k, size = min(top, n), d.abs()
                kth = statistics[2, index].unsqueeze(-1)
                above, equal = size > kth, size == kth
                share = (k - above.sum(1, keepdim=True)) / equal.sum(1, keepdim=True).clamp(min=1)
                carrier = d.sign() * torch.where(equal, share.to(dtype), above.to(dtype)) / k
            carrier = carrier - carrier.mean(1, keepdim=True)
            pull = carrier * r * product * norm_constant(norm, n)
        dx = r * (g - g.mean(1, keepdim=True) - pull)
        dx = dx if weight is None else dx * weight.unsqueeze(1)
        done.append(dx.unflatten(1, (ghost.shape[0], *ghost.shape[2:])).transpose(0, 1))
        sums.append(torch.stack(((r * product).squeeze(1), g.sum(1))))
    dresidual = x.new_empty(0)
    if residual and relu:
        dresidual = torch.empty_like(x).copy_(upstream)
    return torch.empty_like(x).copy_(torch.cat(done)), torch.stack(sums, 1), dresidual


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
        y, _ = _normalized(inputs[1], None, None, NormPolicy(policy), top, counts, eps)
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
