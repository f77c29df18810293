"""Gradient clipping by the global norm (Pascanu et al. 2013), without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from largebatch import _ops


@torch.no_grad()
def clip_grad_norm_(parameters: Tensor | Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale gradients in place so that their global norm is at most ``max_norm``.

    The factor is min(1, ``max_norm`` / (norm + 1e-6)), applied even where it is 1, as torch does.

    Args:
        parameters: whose gradients, where they have one, count together.
        max_norm: positive.

    Returns:
        The norm before clipping: 0-d, float64 if any gradient is, else float32; the same bits for
        any thread count.
    """
    params = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    grads = [param.grad for param in params if param.grad is not None]
    norm, factor = _norm_and_factor(grads, max_norm)
    _scale(grads, factor)
    return norm


@torch.no_grad()
def clip_gradients(optimizer: torch.optim.Optimizer, max_norm: float) -> Tensor:
    """Clip the gradients of ``optimizer``'s parameters; return the factor, 0-d, at most 1.

    An optimizer with a ``grad_factor`` (:class:`largebatch.optim.SGD`) is handed the factor and
    applies it as it reads the gradients, so that clipping writes nothing; for any other the
    gradients are scaled in place.
    """
    grads = [
        param.grad
        for group in optimizer.param_groups
        for param in group["params"]
        if param.grad is not None
    ]
    _, factor = _norm_and_factor(grads, max_norm)
    if hasattr(optimizer, "grad_factor"):
        optimizer.grad_factor = factor
    else:
        _scale(grads, factor)
    return factor


def _norm_and_factor(grads: list[Tensor], max_norm: float) -> tuple[Tensor, Tensor]:
    by_device: dict[torch.device, list[Tensor]] = {}
    for grad in grads:
        by_device.setdefault(grad.device, []).append(grad)
    if len(by_device) <= 1:
        return _ops.clip_factor(grads, max_norm)
    first = grads[0].device
    norms = [_ops.global_norm(part).to(first) for part in by_device.values()]
    return _ops.clip_factor([torch.stack([norm.double() for norm in norms])], max_norm)


def _scale(grads: list[Tensor], factor: Tensor) -> None:
    for grad in grads:
        grad.mul_(factor.to(grad.device))
