"""Gradient clipping by the global norm (Pascanu et al. 2013), without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from largebatch import _ops
from largebatch.optim.agc import adaptive_grad_clip_, clipped_parameters
from largebatch.optim.config import OptimConfig
from largebatch.optim.gradient_norm import norm_parts
from largebatch.optim.parameters import local


@torch.no_grad()
def clip_grad_norm_(parameters: Tensor | Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale gradients in place so that their global norm is at most ``max_norm``.

    The factor is min(1, ``max_norm`` / (norm + 1e-6)), applied even where it is 1, as torch does.
    Of sharded DTensors (FSDP2) the norm is that of the whole gradients; their ranks must all call.

    Args:
        parameters: whose gradients, where they have one, count together.
        max_norm: positive.

    Returns:
        The norm before clipping: 0-d, the same bits for any thread count; float32, or float64 if a
        gradient is or if several devices or ranks have added up.

    Raises:
        UserError: a sparse gradient.
    """
    params = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    norm, factor = _ops.clip_factor(norm_parts("clip_grad_norm_", params), max_norm)
    _scale(params, factor)
    return norm


@torch.no_grad()
def clip_gradients(optimizer: torch.optim.Optimizer, max_norm: float) -> Tensor:
    """Clip the gradients of ``optimizer``'s parameters; return the factor, 0-d, at most 1.

    An optimizer with a ``grad_factor`` (:class:`largebatch.optim.SGD`) is handed the factor and
    applies it as it reads the gradients, so that clipping writes nothing; for any other the
    gradients are scaled in place. Of sharded parameters the norm is that of the whole gradients.

    Raises:
        UserError: a sparse gradient.
    """
    params = [param for group in optimizer.param_groups for param in group["params"]]
    fragments = getattr(optimizer, "fragments", None)
    _, factor = _ops.clip_factor(norm_parts("clip_gradients", params, fragments), max_norm)
    if hasattr(optimizer, "grad_factor"):
        optimizer.grad_factor = factor
    else:
        _scale(params, factor)
    return factor


def _scale(params: list[Tensor], factor: Tensor) -> None:
    for param in params:
        if param.grad is not None:
            local(param.grad).mul_(factor.to(param.grad.device))


class Clipping:
    """What a config clips before a step: units (``adaptive_clip``), then the global norm."""

    def __init__(
        self, config: OptimConfig, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        self._config, self._optimizer = config, optimizer
        self._parameters = clipped_parameters(model)

    def __call__(self) -> Tensor | None:
        """Clip the unscaled gradients; return the factor of the global norm where it is clipped."""
        config = self._config
        if config.adaptive_clip is not None:
            adaptive_grad_clip_(self._parameters, config.adaptive_clip, config.adaptive_clip_eps)
        if config.clip_norm is None:
            return None
        return clip_gradients(self._optimizer, config.clip_norm)
