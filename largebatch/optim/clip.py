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
    For sharded DTensors (FSDP2) the norm is that of the whole gradients, and every rank must call.

    Args:
        parameters: their gradients count together; those without a gradient are skipped.
        max_norm: largest global norm, positive.

    Returns:
        The norm before clipping, 0-d, with the same bits for any number of threads. float32;
        float64 if a gradient is float64 or if several devices or ranks took part.

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

    An optimizer with a ``grad_factor`` (such as :class:`largebatch.optim.SGD`) gets the factor and
    multiplies the gradients as it reads them, so clipping writes nothing. For other optimizers the
    gradients are scaled in place. For sharded parameters the norm is that of the whole gradients.

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
    """The clipping of a config: first by unit (``optim.adaptive_clip``), then by global norm."""

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
