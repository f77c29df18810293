"""What the references of ``sgd_``, ``lars_`` and ``lamb_`` share: a tensor of a step at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from largebatch._ops.dtypes import accumulate_dtype


class StepCall:
    """The lists of a call, widened tensor by tensor; what a skipped step must not change stays."""

    def __init__(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        masters: Sequence[Tensor],
        grad_factor: Tensor | None,
        found_inf: Tensor | None,
        maximize: bool,
    ) -> None:
        self.params, self.grads, self.masters = params, grads, masters
        self.grad_factor, self.found_inf = grad_factor, found_inf
        self.sign = -1.0 if maximize else 1.0

    def weight(self, index: int) -> Tensor:
        """Return the parameter, from its master where it has one."""
        param = self.params[index]
        if self.masters and self.masters[index].numel() > 0:
            return self.masters[index]
        return param.to(accumulate_dtype(param.dtype))

    def grad(self, index: int) -> Tensor:
        """Return the gradient times its factor."""
        grad = self.sign * self.grads[index].to(accumulate_dtype(self.grads[index].dtype))
        return grad if self.grad_factor is None else grad * self.grad_factor.to(grad.dtype)

    def keep(self, new: Tensor, old: Tensor) -> Tensor:
        """Return ``new``, or ``old`` where the step is skipped."""
        return new if self.found_inf is None else torch.where(self.found_inf != 0, old, new)

    def store(self, index: int, new: Tensor, old: Tensor) -> None:
        """Write the parameter, and its master."""
        new = self.keep(new.to(old.dtype), old)
        if self.masters and self.masters[index].numel() > 0:
            self.masters[index].copy_(new)
        self.params[index].copy_(new)
