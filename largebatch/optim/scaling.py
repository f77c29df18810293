"""What multiplies the gradients of a step: the clip factor, and one over the loss scale."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def gradient_factor(optimizer: Any) -> Tensor | None:
    """Take an optimizer's ``grad_factor`` and unscale it; None where nothing multiplies.

    ``torch.amp.GradScaler`` sets and deletes ``grad_scale`` around its call of a step that says
    ``_step_supports_amp_scaling``.
    """
    factor: Tensor | None
    factor, optimizer.grad_factor = optimizer.grad_factor, None
    grad_scale: Tensor | None = getattr(optimizer, "grad_scale", None)
    if grad_scale is None:
        return factor
    unscale = grad_scale.double().reciprocal().float()
    return unscale if factor is None else factor * unscale
