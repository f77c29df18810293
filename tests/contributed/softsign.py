"""``softsign``: x over 1 + |x|."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from largebatch._ops.derivatives import register_autograd
from largebatch._ops.library import Operator, notice, register


def reference_softsign(x: Tensor) -> Tensor:
    """Specify ``largebatch::softsign``."""
    return (x / (1 + x.abs())).contiguous()


def _fake_softsign(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


register(Operator("softsign(Tensor x) -> Tensor", reference_softsign, _fake_softsign))


def _keep(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor]:
    (x,) = ctx.saved_tensors
    return (grad / (1 + x.abs()).square(),)


register_autograd("softsign", _backward, _keep, reference_softsign)


def softsign(x: Tensor) -> Tensor:
    """Return x / (1 + |x|), contiguous, of the shape and type of ``x``; differentiable."""
    notice("softsign", [x])
    y: Tensor = torch.ops.largebatch.softsign(x)
    return y
