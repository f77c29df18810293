"""The baseline of the sync benchmark: the algorithm of torch's SyncBatchNorm, over gloo.

torch's own SyncBatchNorm refuses CPU tensors. Its collectives (torch 2.15,
``torch/nn/modules/_functions.py``) are one all-gather of (mean, inverse deviation, count) of every
rank in the forward, 2C + 1 numbers from each, and one all-reduce of 2C in the backward. The
arithmetic between is ours, so that only the messages differ.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from largebatch.nn.convert import BatchNorm

ops = torch.ops.largebatch


class GatheredBatchNorm(BatchNorm):
    """Batch norm over all ranks of ``group`` by an all-gather, for ranks with samples."""

    group: dist.ProcessGroup | None = None

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        y, mean, variance = _Gathered.apply(input, self.weight, self.bias, self.eps, self.group)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance, self.momentum)
        return y


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, group: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        channels = x.shape[1]
        mean, variance = ops.norm_moments(x, None)
        own = torch.cat([mean, (variance + eps).rsqrt(), mean.new_full((1,), x.numel() / channels)])
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, own, group)
        means, inverses, counts = torch.stack(parts).split([channels, channels, 1], 1)
        count = counts.sum()
        center = (counts * means).sum(0) / count
        squares = counts * (inverses.pow(-2) - eps + (means - center).square())
        variance = squares.sum(0) / count
        r = (variance + eps).rsqrt()
        empty = x.new_empty(0, dtype=torch.uint8)
        y, _ = ops.norm_apply(x, torch.stack((center, r * weight, bias)), None, False)
        ctx.save_for_backward(x, weight, center, r, count, empty)
        ctx.group = group
        unbiased = variance * (count / (count - 1))
        ctx.mark_non_differentiable(center, unbiased)
        return y, center, unbiased

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, center, r, count, empty = ctx.saved_tensors
        own = ops.norm_gradient_sums(grad, x, empty, torch.stack((center, r)), 0)
        sums = own.clone()
        dist.all_reduce(sums, group=ctx.group)
        scale = r * weight
        spread, zero = -scale * r.square() * sums[1] / count, torch.zeros_like(r)
        terms = torch.stack((center, scale, -scale * sums[0] / count, spread, zero, zero))
        dx, _ = ops.norm_gradient(grad, x, empty, terms, 0, False)
        return dx, own[1] * r, own[0], None, None
