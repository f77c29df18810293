"""``hadamard``: the product with a part of a Hadamard matrix, without storing the matrix."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from largebatch._ops.derivatives import register_autograd
from largebatch._ops.dtypes import accumulate_dtype
from largebatch._ops.library import _LIBRARY, Operator, notice, register


def transform_length(features: int, outputs: int) -> int:
    """Return the length of the transform: the smaller of both sizes' next powers of two.

    In Sylvester's matrix H[i, j] = (-1)^popcount(i & j), rows below a power of two p repeat along
    the columns with period p. So with few outputs, x can first be summed to length p. With few
    features, outputs repeat with period p.
    """
    return min(2 ** (features - 1).bit_length(), 2 ** (outputs - 1).bit_length())


def reference_hadamard(x: Tensor, outputs: int) -> Tensor:
    """Specify ``largebatch::hadamard``; :func:`hadamard` says what the arguments mean."""
    if x.shape[-1] < 1 or outputs < 1:
        raise ValueError(f"hadamard: {x.shape[-1]} features, {outputs} outputs; at least 1 of each")
    length = transform_length(x.shape[-1], outputs)
    t = F.pad(x.to(accumulate_dtype(x.dtype)), (0, -x.shape[-1] % length))
    t = t.unflatten(-1, (-1, length)).sum(-2)
    step = 1
    while step < length:
        pairs = t.unflatten(-1, (-1, 2, step))
        upper, lower = pairs.unbind(-2)
        t = torch.stack((upper + lower, upper - lower), -2).flatten(-3)
        step *= 2
    index = torch.arange(outputs, device=x.device) % length
    return t[..., index].to(x.dtype)


def _fake_hadamard(x: Tensor, outputs: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], outputs))


register(
    Operator("hadamard(Tensor x, int outputs) -> Tensor", reference_hadamard, _fake_hadamard),
)


def _keep_size(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    ctx.features = inputs[0].shape[-1]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    # The matrix is symmetric, so its transposed part is a part of the same kind.
    return torch.ops.largebatch.hadamard(grad, ctx.features), None


def _vmap(
    info: Any, in_dims: tuple[int | None, ...], x: Tensor, outputs: int
) -> tuple[Tensor, int]:
    assert in_dims[0] is not None
    return torch.ops.largebatch.hadamard(x.movedim(in_dims[0], 0), outputs), 0


register_autograd("hadamard", _backward, _keep_size, reference_hadamard)
torch.library.register_vmap("largebatch::hadamard", _vmap, lib=_LIBRARY)


def hadamard(x: Tensor, outputs: int) -> Tensor:
    """Return ``x`` times the transposed first ``outputs`` rows of a Hadamard matrix.

    The matrix is Sylvester's, H[i, j] = (-1)^popcount(i & j), of the next power of two from the
    larger size, cut to as many columns as ``x`` has features. A fast Walsh-Hadamard transform takes
    O(features + p log p) additions a row, with p the ``transform_length``. Sums are float64 for
    float64 ``x``, else float32, in a fixed order. Differentiable to any order.

    Args:
        x: (..., features), at least one feature; float32, float64, float16 or bfloat16.
        outputs: number of rows of the matrix, at least 1.

    Returns:
        (..., outputs), contiguous, of the type of ``x``.
    """
    notice("hadamard", [x])
    y: Tensor = torch.ops.largebatch.hadamard(x, outputs)
    return y
