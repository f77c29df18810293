"""Optimizer steps under loss scaling: factors of the gradients, and who undoes the scale."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from largebatch.optim.closure import loss_of
from largebatch.optim.optimizer import Portable


class ScaledStep(Portable):
    """An optimizer whose step multiplies the gradients as it reads them.

    The class keeps to the protocol of torch's fused optimizers. With :attr:`unscales`,
    ``torch.amp.GradScaler`` calls every step. The step itself unscales on the device, and changes
    nothing if an infinity was found. Then nothing waits for the device, and gradients are not
    written.

    Without :attr:`unscales`, the scaler unscales the gradients before the step and leaves out a
    step that is to be skipped. Code that clips or counts steps by itself needs this form
    (Lightning's ``gradient_clip_val``, accelerate's ``step_was_skipped``).

    Attributes:
        grad_factor: a 0-d tensor that multiplies the gradients of the next step, such as the clip
            factor of :func:`largebatch.optim.clip_gradients`; the step sets it back to None.
    """

    carried: ClassVar[tuple[str, ...]] = ("grad_factor", "_step_supports_amp_scaling")
    grad_factor: Tensor | None = None
    _step_supports_amp_scaling = False

    @property
    def unscales(self) -> bool:
        """Whether the step unscales by itself; as in torch, at first only with ``fused=True``."""
        return self._step_supports_amp_scaling

    @unscales.setter
    def unscales(self, value: bool) -> None:
        self._step_supports_amp_scaling = value

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; return the loss of ``closure``, which may compute it anew."""
        loss = loss_of(closure)
        factor, self.grad_factor = self.grad_factor, None
        grad_scale: Tensor | None = getattr(self, "grad_scale", None)  # the scaler sets both
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if grad_scale is not None:
            unscale = grad_scale.double().reciprocal().float()
            factor = unscale if factor is None else factor * unscale
        self.take(self.prepare(factor), found_inf)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, and ``grad_factor`` with them."""
        super().zero_grad(set_to_none)
        self.grad_factor = None

    def prepare(self, factor: Tensor | None) -> Tensor | None:
        """Return the factor of this step's gradients, given the factor known so far."""
        return factor

    @abstractmethod
    def take(self, factor: Tensor | None, found_inf: Tensor | None) -> None:
        """Take a step along ``factor`` x gradient; none where ``found_inf`` is not 0."""
