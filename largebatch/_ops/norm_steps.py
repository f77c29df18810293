"""The single steps of ``ghost_norm``, for a ghost batch whose samples lie on several ranks.

Between the steps the caller sums over ranks: moments after the first step, sums after the third.
Each step takes the whole of its ``x`` as the rank's part of one ghost.
"""

from __future__ import annotations

import torch
from torch import Tensor

from largebatch._ops.derivatives import register_refusal
from largebatch._ops.dtypes import accumulate_dtype
from largebatch._ops.library import Operator, register
from largebatch._ops.norm_layout import from_bits, in_layout, in_layout_of, mask_size, to_bits
from largebatch._ops.norm_reference import NormPolicy


def _values(x: Tensor) -> Tensor:
    """Return ``x`` as (C, n), in the accumulation type."""
    return x.to(accumulate_dtype(x.dtype)).transpose(0, 1).flatten(1)


def _along_channels(row: Tensor, x: Tensor) -> Tensor:
    return row.view(-1, *[1] * (x.dim() - 2))


def reference_norm_moments(x: Tensor, center: Tensor | None) -> Tensor:
    """Specify ``largebatch::norm_moments``: mean and biased variance of each channel, (2, C).

    With ``center`` (C,): that, and the mean absolute deviation from it.
    """
    values = _values(x)
    if center is None:
        mean = values.mean(1)
        return torch.stack((mean, (values - mean.unsqueeze(1)).square().mean(1)))
    return torch.stack((center, (values - center.unsqueeze(1)).abs().mean(1)))


def reference_norm_apply(
    x: Tensor, coefficients: Tensor, residual: Tensor | None, relu: bool
) -> tuple[Tensor, Tensor]:
    """Specify ``largebatch::norm_apply``: (x - mean) scale + bias (+ residual) (through a ReLU).

    ``coefficients`` (3, C) are mean, scale and bias. Returns y and the ReLU's mask as bits.
    """
    x = in_layout(x)
    mean, scale, bias = (_along_channels(row, x) for row in coefficients)
    y = (x.to(accumulate_dtype(x.dtype)) - mean) * scale + bias
    if residual is not None:
        y = y + residual.to(y.dtype)
    mask = torch.empty(0, dtype=torch.uint8, device=x.device)
    if relu:
        mask = to_bits(~(y <= 0), x)
        y = y.relu()
    return in_layout_of(x, y), mask


def reference_norm_gradient_sums(
    grad: Tensor, x: Tensor, mask: Tensor, statistics: Tensor, policy: int
) -> Tensor:
    """Specify ``largebatch::norm_gradient_sums``: what a channel's gradient needs, (2, 3 or 6, C).

    With d = x - mean: sum of g, sum of g d; L1: sum of sign(d); top-k: how many |d| lie above
    the k-th largest, how many at it, and the sums of their signs. ``statistics`` are those of
    ``ghost_norm`` for one ghost.
    """
    x = in_layout(x)
    g, d = _values(_through(grad, mask, x)), _values(x) - statistics[0].unsqueeze(1)
    rows = [g.sum(1), (g * d).sum(1)]
    if policy == NormPolicy.L1:
        rows.append(d.sign().sum(1))
    elif policy == NormPolicy.TOP_K:
        size, kth = d.abs(), statistics[2].unsqueeze(1)
        above, equal = size > kth, size == kth
        rows += [t.sum(1).to(d.dtype) for t in (above, equal)]
        rows += [(d.sign() * t).sum(1) for t in (above, equal)]
    return torch.stack(rows)


def reference_norm_gradient(
    grad: Tensor, x: Tensor, mask: Tensor, coefficients: Tensor, policy: int, residual: bool
) -> tuple[Tensor, Tensor]:
    """Specify ``largebatch::norm_gradient``: dx = a g + b + c s(d), and the residual's gradient.

    ``coefficients`` (6, C) are the mean, a, b, c, the k-th largest deviation and the share of
    those equal to it. s(d) is d for L2, sign(d) for L1, and for top-k sign(d) above the k-th
    largest and its share at it. The second result is empty where it would be ``grad``.
    """
    x = in_layout(x)
    wide = accumulate_dtype(x.dtype)
    mean, of_grad, constant, spread, kth, share = (_along_channels(r, x) for r in coefficients)
    g, d = _through(grad, mask, x).to(wide), x.to(wide) - mean
    if policy != NormPolicy.L2:
        size, d = d.abs(), d.sign()
        if policy == NormPolicy.TOP_K:
            d = d * torch.where(size == kth, share, (size > kth).to(wide))
    dx = in_layout_of(x, of_grad * g + (constant + spread * d))
    if residual and mask.numel() > 0:
        return dx, in_layout_of(x, g)
    return dx, x.new_empty(0)


def _through(grad: Tensor, mask: Tensor, x: Tensor) -> Tensor:
    return torch.where(from_bits(mask, x), grad, 0.0) if mask.numel() > 0 else grad


def _fake_norm_moments(x: Tensor, center: Tensor | None) -> Tensor:
    return x.new_empty((2, x.shape[1]), dtype=accumulate_dtype(x.dtype))


def _fake_norm_apply(
    x: Tensor, coefficients: Tensor, residual: Tensor | None, relu: bool
) -> tuple[Tensor, Tensor]:
    x = in_layout(x)
    mask = x.new_empty((mask_size(x) if relu else 0,), dtype=torch.uint8)
    return torch.empty_like(x), mask


def _fake_norm_gradient_sums(
    grad: Tensor, x: Tensor, mask: Tensor, statistics: Tensor, policy: int
) -> Tensor:
    rows = {NormPolicy.L2: 2, NormPolicy.L1: 3, NormPolicy.TOP_K: 6}[NormPolicy(policy)]
    return statistics.new_empty((rows, x.shape[1]))


def _fake_norm_gradient(
    grad: Tensor, x: Tensor, mask: Tensor, coefficients: Tensor, policy: int, residual: bool
) -> tuple[Tensor, Tensor]:
    x = in_layout(x)
    masked = residual and mask.numel() > 0
    return torch.empty_like(x), torch.empty_like(x) if masked else x.new_empty((0,))


register(
    Operator(
        "norm_moments(Tensor x, Tensor? center) -> Tensor",
        reference_norm_moments,
        _fake_norm_moments,
    ),
    Operator(
        "norm_apply(Tensor x, Tensor coefficients, Tensor? residual, bool relu) "
        "-> (Tensor, Tensor)",
        reference_norm_apply,
        _fake_norm_apply,
    ),
    Operator(
        "norm_gradient_sums(Tensor grad, Tensor x, Tensor mask, Tensor statistics, int policy) "
        "-> Tensor",
        reference_norm_gradient_sums,
        _fake_norm_gradient_sums,
    ),
    Operator(
        "norm_gradient(Tensor grad, Tensor x, Tensor mask, Tensor coefficients, int policy, "
        "bool residual) -> (Tensor, Tensor)",
        reference_norm_gradient,
        _fake_norm_gradient,
    ),
)

for _step in ("norm_moments", "norm_apply", "norm_gradient_sums", "norm_gradient"):
    register_refusal(_step)
