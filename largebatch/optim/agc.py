"""Adaptive gradient clipping: gradients in proportion to weights (Brock et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from largebatch import _ops
from largebatch._errors import UserError
from largebatch.distributed.sharding import is_sharded
from largebatch.nn import find_classifier
from largebatch.optim.parameters import check_dense, local


@torch.no_grad()
def adaptive_grad_clip_(
    parameters: Tensor | Iterable[Tensor], clipping: float = 0.01, eps: float = 1e-3
) -> None:
    """Scale every unit's gradient to a norm of at most ``clipping`` x that of its weights.

    A unit is a row along the first dimension: one output of a linear layer or a convolution. A
    tensor of at most one dimension (a gain or a bias) is one unit (section 4.1)::

        g_i <- g_i min(1, clipping max(|w_i|, eps) / |g_i|)

    The paper clips everything but the weight of the last linear layer; :func:`clipped_parameters`
    returns these parameters. Undo any loss scale first. A unit whose gradient has an infinity or
    NaN still has one afterwards.

    Args:
        parameters: their gradients are scaled in place; those without a gradient are skipped.
            DTensors may be sharded along the first dimension only.
        clipping: largest ratio of gradient norm to weight norm, positive.
        eps: smallest weight norm that counts, so that weights at zero can move.

    Raises:
        UserError: a sparse gradient, or a DTensor not sharded along its first dimension.
    """
    params = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    pairs = [(param, param.grad) for param in params if param.grad is not None]
    check_dense("adaptive_grad_clip_", [grad for _, grad in pairs])
    for param, grad in pairs:
        limit = clipping * _unit_norm(param).clamp(min=eps)
        norm = _unit_norm(grad)
        # A norm of zero gives no quotient; one that is not a number passes through.
        factor = torch.where(norm <= limit, 1.0, limit / norm)
        here = local(grad)
        here.mul_(factor.to(_ops.accumulate_dtype(here.dtype)))


def _unit_norm(tensor: Tensor) -> Tensor:
    """Return the norms of a tensor's units, float64, as broadcasts along with this rank's part."""
    whole = tensor.ndim <= 1
    if is_sharded(tensor):
        if any(p.is_partial() or (p.is_shard() and not p.is_shard(0)) for p in tensor.placements):
            raise UserError(
                f"adaptive_grad_clip_: a tensor with placements {tensor.placements}: shard the "
                "first dimension"
            )
        if whole:
            tensor = tensor.full_tensor()
        tensor = local(tensor)
    dims = None if whole else tuple(range(1, tensor.ndim))
    return torch.linalg.vector_norm(tensor, dim=dims, keepdim=not whole, dtype=torch.float64)


def clipped_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that the paper clips: all but the weight of the classifier."""
    name = find_classifier(model)
    spared = None if name is None else model.get_submodule(name).weight
    return [param for param in model.parameters() if param is not spared]
