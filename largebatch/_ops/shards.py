"""``sum_shards``: add, divide and cast the shards from the ranks of one axis in a single pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from largebatch._ops.derivatives import refuse_derivatives
from largebatch._ops.library import Operator, notice, register


def reference_sum_shards(
    shards: Sequence[Tensor], out: Tensor, *, divisor: int, squares: bool
) -> Tensor:
    """Specify ``largebatch::sum_shards``: added in float64 in the order given, rounded once.

    Integers are added in their own type, which wraps, and divided towards zero. For booleans the
    sum is "or". See :func:`sum_shards` for the arguments.
    """
    if divisor < 1:
        raise ValueError(f"sum_shards: divisor {divisor}; at least 1")
    found = out.new_zeros(2, dtype=torch.float64)
    if out.dtype == torch.bool:
        out.copy_(torch.stack(list(shards)).any(0))
        return found
    floating = out.is_floating_point()
    if squares and floating:
        found[0] = sum(shard.double().square().sum() for shard in shards)
    total = shards[0].to(torch.float64 if floating else out.dtype, copy=True)
    for shard in shards[1:]:
        total += shard
    if divisor != 1:
        if floating:
            total = total / divisor
        else:  # which need not be a number of their type
            total = torch.div(total.long(), divisor, rounding_mode="trunc")
    out.copy_(total)
    if squares and floating:
        found[1] = out.double().square().sum()
    return found


def _fake_sum_shards(
    shards: Sequence[Tensor], out: Tensor, *, divisor: int, squares: bool
) -> Tensor:
    return out.new_empty(2, dtype=torch.float64)


register(
    Operator(
        "sum_shards(Tensor[] shards, Tensor(a!) out, *, int divisor, bool squares) -> Tensor",
        reference_sum_shards,
        _fake_sum_shards,
        is_guarded=False,
    )
)


def sum_shards(
    shards: Sequence[Tensor], out: Tensor, *, divisor: int = 1, squares: bool = False
) -> Tensor:
    """Write the sum of ``shards`` over ``divisor`` to ``out``, which may be one of them.

    Args:
        shards: contiguous tensors of one type and size, on one device.
        out: tensor of the same type, or of a narrower floating-point type for float32 shards; the
            cast costs no extra pass. Floating-point sums are exact in float64 and rounded once.
        divisor: 1 for a sum, the number of ranks for a mean.
        squares: whether to sum squares in the same pass.

    Returns two float64 numbers: the sum of the squares of all shards' elements, and of ``out``'s;
    zeros unless ``squares``.
    """
    refuse_derivatives("sum_shards", shards)
    notice("sum_shards", shards)
    return torch.ops.largebatch.sum_shards(shards, out, divisor=divisor, squares=squares)
