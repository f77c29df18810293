"""Sharpness-aware minimization (Foret et al. 2021): step by the gradient at a worse place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import nn

from largebatch import _ops
from largebatch._errors import UserError
from largebatch.nn import frozen_statistics
from largebatch.optim.gradient_norm import norm_parts
from largebatch.optim.parameters import local
from largebatch.optim.wrapper import Wrapper

Scope = Literal["global", "rank"]


class SAM(Wrapper):
    """Wraps an optimizer, which then steps with the gradient at perturbed weights::

        e = rho g / |g|,  g = gradient at w;   the optimizer steps from w with the gradient at w + e

    A step takes two forward and two backward passes. So ``step`` needs a closure, which clears the
    gradients, computes the loss and calls ``backward``::

        sam = SAM(SGD(model.parameters(), lr=0.1), model)
        loss = sam.step(closure)

    A loop that runs the passes itself (gradient accumulation, loss scaling) goes on like this after
    the first backward pass::

        with sam.perturbed():
            sam.zero_grad()
            scaler.scale(loss_of(batch)).backward()
        scaler.step(sam)

    The perturbation does not depend on a loss scale or on the optimizer's weight decay. Running
    statistics of norms are those of the first pass. Clip after the second pass. Weights are
    restored to the bit, also after an exception. If the gradient is zero, there is no perturbation.

    Args:
        optimizer: takes the steps; groups and state are shared with the wrapper.
        model: its norms keep their running statistics in the second pass.
        rho: length of the perturbation e.
        scope: gradient that e follows. ``global``: the gradient summed over ranks, so that e does
            not depend on their number. ``rank``: each rank's own gradient, which saves a message
            and is the default of the authors' code. With a closure and ``rank``, ``model`` must be
            torch's DistributedDataParallel: its ``no_sync`` covers the first pass.

    Raises:
        UserError: ``rho`` or ``scope`` is out of range, a sparse gradient.
    """

    carried = (*Wrapper.carried, "model", "rho", "scope")

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        rho: float = 0.05,
        scope: Scope = "global",
    ) -> None:
        if not 0.0 <= rho < math.inf:
            raise UserError(f"SAM: rho={rho}: a number from 0 up")
        if scope not in get_args(Scope):
            raise UserError(f"SAM: scope={scope!r}: {' or '.join(get_args(Scope))}")
        super().__init__(optimizer)
        self.model, self.rho, self.scope = model, rho, scope

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; return the loss of ``closure`` at the unperturbed weights.

        Without a closure the gradients must come from a pass within :meth:`perturbed`.
        """
        loss = None
        if closure is not None:
            alone = nullcontext if self.scope == "global" else getattr(self.model, "no_sync", None)
            with torch.enable_grad(), (alone or nullcontext)():
                loss = closure()
            with torch.enable_grad(), self.perturbed():
                closure()
        self.optimizer.step()
        return loss

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Move the weights by e, from the present gradients, for a ``with`` block."""
        params = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        with torch.no_grad():
            weights = [local(param) for param in params]
            before = [weight.clone() for weight in weights]
            norm = _ops.global_norm(norm_parts("SAM", params))
            scale = torch.where(norm > 0, self.rho / norm, torch.zeros_like(norm))
            for weight, param in zip(weights, params, strict=True):
                grad = local(param.grad).to(_ops.accumulate_dtype(weight.dtype))
                weight.add_(grad * scale.to(weight.device))
        try:
            with frozen_statistics(self.model):
                yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(weights, before)
