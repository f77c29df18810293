"""One ghost batch that lies on several ranks: normalised by the statistics of all of its samples.

Between the steps of the operator (``largebatch._ops.norm_steps``) the ranks of a group exchange one
message a layer and direction, in float32 (float64 for float64 input). With C channels:

| norm         | forward                                                      | backward |
|--------------|--------------------------------------------------------------|----------|
| L2           | sum of (count, sum, sum of squares) about a shared shift, 2C+1 | sum of 2C |
| L2, no shift | sum of (count, sum), C+1; sum of squares about the mean, C   | sum of 2C |
| L1           | sum of (count, sum), C+1; sum of deviations from the mean, C | sum of 3C |
| L-infinity   | gather of (count, mean, max, min), 3C+1                      | sum of 6C |
| top-k        | sum of (count, sum), C+1; gather of the k largest, kC        | sum of 6C |

The shift is the running mean, equal on all ranks of a group because all record the same ghosts. In
float32 the shift must lie within some hundred deviations of the mean, or the variance loses digits.
Without running statistics there is no shift, and a second message is sent instead. Nothing waits
for a device. Counts may differ, and a rank without samples takes part with zeros.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from largebatch._ops import NormPolicy, accumulate_dtype, norm_constant
from largebatch._ops.derivatives import has_tangent

_REFUSAL = "a norm over several ranks has no {}: run it on one"


@dataclass(frozen=True)
class Ranks:
    """A process group by name and size, a form that copied modules and compiled graphs can hold."""

    name: str
    size: int


def ranks_of(group: dist.ProcessGroup) -> Ranks:
    """Return ``group`` in the form that norms store."""
    return Ranks(group.group_name, group.size())


def all_ranks() -> Ranks | None:
    """Return the ranks of the default process group, None without one."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    world = dist.group.WORLD
    assert world is not None
    return ranks_of(world)


def norm_over_ranks(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    ranks: Ranks,
    *,
    shift: Tensor | None,
    eps: float,
    policy: NormPolicy = NormPolicy.L2,
    top: int = 1,
    residual: Tensor | None = None,
    relu: bool = False,
) -> tuple[Tensor, Tensor]:
    """Normalise ``x`` by the mean and spread of each channel over all of ``ranks``.

    Every rank must call this the same number of times, in the same order, with the same options.
    ``x`` is (n, C, ...); n may differ by rank and may be 0. The arguments are those of
    ``largebatch._ops.ghost_norm``. The gradients of weight and bias are from this rank's samples.

    Args:
        shift: (C,), the same on all ranks and near the mean, or None.

    Returns:
        y, and outside of autograd a (2, C) tensor: the mean, and the unbiased estimate of the
        variance (L2) or the squared deviation (other norms).

    Raises:
        RuntimeError: a gradient is asked for with ``create_graph``, by forward mode or inside of
            ``torch.func``: not supported over ranks.
    """
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        raise RuntimeError(_REFUSAL.format("derivative inside of torch.func"))
    # Not by a `jvp` of the function: torch.compile traces none that has one.
    given = [tensor for tensor in (x, weight, bias, residual) if tensor is not None]
    if not torch.compiler.is_compiling() and has_tangent(given):
        raise RuntimeError(_REFUSAL.format("derivative in forward mode"))
    wide = accumulate_dtype(x.dtype)
    y, statistics = _OverRanks.apply(
        x,
        None if weight is None else weight.to(wide),
        None if bias is None else bias.to(wide),
        residual,
        None if shift is None else shift.to(wide),
        ranks.name,
        ranks.size,
        policy,
        top,
        eps,
        relu,
    )
    return y, statistics


class _OverRanks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        shift: Tensor | None,
        name: str,
        size: int,
        policy: NormPolicy,
        top: int,
        eps: float,
        relu: bool,
    ) -> tuple[Tensor, Tensor]:
        if policy == NormPolicy.L2:
            count, statistics = _squares(x, shift, name)
            spread = statistics[1]
            r = (spread + eps).rsqrt()
            variance = spread * (count / (count - 1).clamp(min=1))
        else:
            if policy == NormPolicy.L1:
                count, statistics = _deviations(x, name)
            elif top == 1:
                count, statistics = _largest(x, name, size)
            else:
                count, statistics = _top(x, top, name, size)
            estimate = _constant(policy, count) * statistics[1]
            r = 1.0 / (estimate + eps)
            variance = estimate.square()
        mask = x.new_empty(0, dtype=torch.uint8)
        if x.numel() > 0:
            scale = r if weight is None else r * weight
            shifted = torch.zeros_like(r) if bias is None else bias
            coefficients = torch.stack((statistics[0], scale, shifted))
            y, mask = torch.ops.largebatch.norm_apply(x, coefficients, residual, relu)
        else:
            y = torch.empty_like(x)
        ctx.save_for_backward(x, weight, statistics, mask, count, r)
        ctx.options = name, policy, top
        ctx.has_bias, ctx.has_residual, ctx.relu = bias is not None, residual is not None, relu
        recorded = torch.stack((statistics[0], variance))
        ctx.mark_non_differentiable(recorded)
        return y, recorded

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            raise RuntimeError(_REFUSAL.format("second derivative (create_graph)"))
        x, weight, statistics, mask, count, r = ctx.saved_tensors
        name, policy, top = ctx.options
        channels = x.shape[1]
        if x.numel() > 0:
            own = torch.ops.largebatch.norm_gradient_sums(grad, x, mask, statistics, policy)
        else:
            rows = {NormPolicy.L2: 2, NormPolicy.L1: 3, NormPolicy.TOP_K: 6}[policy]
            own = statistics.new_zeros((rows, channels))
        dx, dresidual = grad, grad
        sums = _sum(own, name)
        if x.numel() > 0:
            terms = _gradient_terms(sums, weight, statistics, count, r, policy, top)
            dx, dresidual = torch.ops.largebatch.norm_gradient(
                grad, x, mask, terms, policy, ctx.has_residual
            )
            dresidual = dresidual if ctx.relu else grad
        return (
            dx,
            None if weight is None else r * own[1],
            own[0].clone() if ctx.has_bias else None,
            dresidual if ctx.has_residual else None,
            *(None,) * 7,
        )


def _gradient_terms(
    sums: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    count: Tensor,
    r: Tensor,
    policy: NormPolicy,
    top: int,
) -> Tensor:
    """Return the coefficients of ``norm_gradient``, (6, C), as ``csrc/norm/math.h`` has them."""
    scale = r if weight is None else r * weight
    zero = torch.zeros_like(r)
    constant, kth, share = -scale * sums[0] / count, zero, zero
    if policy == NormPolicy.L2:
        spread = -scale * r.square() * sums[1] / count
    else:
        carriers, sign = count, sums[-1]
        if policy == NormPolicy.TOP_K:
            _, _, above, equal, above_sign, equal_sign = sums.unbind()
            carriers, kth = count.clamp(max=top), statistics[2]
            share = (carriers - above) / equal.clamp(min=1)
            sign = above_sign + share * equal_sign
        spread = -scale * r * _constant(policy, count) * sums[1] / carriers
        constant = constant - spread * sign / count
    return torch.stack((statistics[0], scale, constant, spread, kth, share))


def _constant(policy: NormPolicy, count: Tensor) -> float | Tensor:
    """Return ``norm_constant`` for a count that only the device knows."""
    if policy != NormPolicy.TOP_K:
        return norm_constant(policy, 2)
    return norm_constant(policy, 2) * (math.log(2) / count.clamp(min=2).log()).sqrt()


def _moments(x: Tensor, center: Tensor | None = None) -> tuple[int, Tensor]:
    """Return this rank's values per channel and its statistics, (2, C)."""
    count = x.numel() // x.shape[1]
    if count == 0:
        return 0, x.new_zeros((2, x.shape[1]), dtype=accumulate_dtype(x.dtype))
    return count, torch.ops.largebatch.norm_moments(x, center)


def _message(count: int, *rows: Tensor) -> Tensor:
    return torch.cat([rows[0].new_full((1,), float(count)), *rows])


def _squares(x: Tensor, shift: Tensor | None, name: str) -> tuple[Tensor, Tensor]:
    """Return the count of all ranks, (), with their mean and biased variance, (2, C)."""
    own, (mean, variance) = _moments(x)
    if shift is not None:
        offset = mean - shift
        sums = _sum(_message(own, own * offset, own * (variance + offset.square())), name)
        count, offset, squares = _split(sums, 2)
        offset = offset / count
        variance = (squares / count - offset.square()).clamp(min=0)
        return count, torch.stack((shift + offset, variance))
    count, total = _split(_sum(_message(own, own * mean), name), 1)
    center = total / count
    squares = _sum(own * (variance + (mean - center).square()), name)
    return count, torch.stack((center, squares / count))


def _center(x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    own, (mean, _) = _moments(x)
    count, total = _split(_sum(_message(own, own * mean), name), 1)
    return count, total / count


def _deviations(x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return the count, the mean and the mean absolute deviation."""
    count, center = _center(x, name)
    own, (_, deviation) = _moments(x, center)
    return count, torch.stack((center, _sum(own * deviation, name) / count))


def _largest(x: Tensor, name: str, size: int) -> tuple[Tensor, Tensor]:
    """Return the count, the mean, and twice the largest deviation: it is the k-th as well."""
    own, (mean, _) = _moments(x)
    if own > 0:
        dims = [d for d in range(x.dim()) if d != 1]
        extremes = [x.amax(dims).to(mean.dtype), x.amin(dims).to(mean.dtype)]
    else:
        extremes = [torch.full_like(mean, -math.inf), torch.full_like(mean, math.inf)]
    parts = gather(_message(own, mean, *extremes), name, size).view(size, -1)
    counts, (means, high, low) = parts[:, :1], parts[:, 1:].unflatten(1, (3, -1)).unbind(1)
    count = counts.sum().clamp(min=1)
    center = (counts * means).sum(0) / count
    largest = torch.maximum(high.amax(0) - center, center - low.amin(0))
    return count, torch.stack((center, largest, largest))


def _top(x: Tensor, top: int, name: str, size: int) -> tuple[Tensor, Tensor]:
    """Return the count, the mean, the mean of the largest deviations and the smallest of them."""
    count, center = _center(x, name)
    values = x.to(center.dtype).transpose(0, 1).flatten(1)
    own = values.shape[1]
    absent = center.new_full((x.shape[1], max(0, top - own)), -1.0)
    largest = absent
    if own > 0:
        deviations = (values - center.unsqueeze(1)).abs()
        largest = torch.cat((deviations.topk(min(top, own), dim=1).values, absent), 1)
    every = gather(largest.t().contiguous(), name, size).topk(top, dim=0).values
    real = ~(every < 0)  # a NaN is real
    mean = torch.where(real, every, 0.0).sum(0) / count.clamp(max=top)
    kth = torch.where(real, every, math.inf).amin(0)
    return count, torch.stack((center, mean, kth))


def _split(sums: Tensor, rows: int) -> tuple[Tensor, ...]:
    """Split a message into the count, at least 1, and its rows."""
    return (sums[0].clamp(min=1), *sums[1:].view(rows, -1).unbind())


def _sum(message: Tensor, name: str) -> Tensor:
    summed = torch.ops._c10d_functional.all_reduce(message.contiguous(), "sum", name)
    return torch.ops._c10d_functional.wait_tensor(summed)


def gather(message: Tensor, name: str, size: int) -> Tensor:
    """Return the messages of all ``size`` ranks of the group, one after the other."""
    gathered = torch.ops._c10d_functional.all_gather_into_tensor(message, size, name)
    return torch.ops._c10d_functional.wait_tensor(gathered)
