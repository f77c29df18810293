"""The reference of ``ghost_norm`` in plain PyTorch: norms, constants and gradients."""

from __future__ import annotations

import math
from enum import IntEnum

import torch
from torch import Tensor

from largebatch._ops.dtypes import accumulate_dtype
from largebatch._ops.norm_layout import from_bits, in_layout, in_layout_of, to_bits


class NormPolicy(IntEnum):
    """The measure of a channel's spread in a ghost batch; numbered as in ``csrc/norm/math.h``.

    L2: the mean of squares, under a root. L1: the mean of absolute deviations. TOP_K: the mean of
    the k largest absolute deviations; k = 1 is the L-infinity norm.
    """

    L2 = 0
    L1 = 1
    TOP_K = 2


def norm_constant(policy: NormPolicy, count: int) -> float:
    """Return the factor from a spread of ``count`` values to an estimated standard deviation.

    L1: sqrt(pi/2), exact for normally distributed values. Top-k: the published constant for the
    largest of n values, 0.5 (1 + sqrt(pi ln 4)) / sqrt(2 ln n), for every k, as in the paper's
    code. On normal values this gives 1.4 times the deviation at k = 1, and 1.0 to 1.35 at k = 10.
    """
    if policy == NormPolicy.L2:
        return 1.0
    if policy == NormPolicy.L1:
        return math.sqrt(math.pi / 2)
    return 0.5 * (1 + math.sqrt(math.pi * math.log(4))) / math.sqrt(2 * math.log(max(count, 2)))


def ghost_counts(samples: int, ghost_size: int, full: int) -> list[int]:
    """Return the samples in each ghost: ``full`` times ``ghost_size``, then the rest."""
    if ghost_size < 1 or full < 0 or full * ghost_size > samples:
        raise ValueError(f"{full} ghosts of {ghost_size} samples do not fit a batch of {samples}")
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


def normalized(
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


def stacked(statistics: list[tuple[Tensor, Tensor, Tensor | None]]) -> Tensor:
    """Return the statistics of ghosts as (2 or 3, ghosts, C)."""
    rows = [
        torch.stack([part for part in parts if part is not None])
        for parts in zip(*statistics, strict=True)
        if parts[0] is not None
    ]
    return torch.stack(rows)


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
    y, statistics = normalized(x, weight, bias, NormPolicy(policy), top, counts, eps)
    if residual is not None:
        y = y + residual.to(y.dtype)
    mask = torch.empty(0, dtype=torch.uint8, device=x.device)
    if relu:
        mask = to_bits(~(y <= 0), x)
        y = y.relu()
    return in_layout_of(x, y), stacked(statistics), mask


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
        dresidual = in_layout_of(x, upstream)
    return in_layout_of(x, torch.cat(done)), torch.stack(sums, 1), dresidual
