"""The norm of a step's gradient."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from largebatch.probes.instrument import Instrument, Moment
from largebatch.probes.registry import probes


@probes.register("gradient_norm", "norm of the gradient that the optimizer is to step along")
class GradientNorm(Instrument):
    """Joins ``gradient_norm`` to the lines of the steps that it is due at."""

    moment = "exchanged"

    def measure(self, at: Moment) -> Mapping[str, Tensor]:
        """Return the norm over all parameters of the sum over all ranks."""
        gradients = [p.grad for p in at.model.parameters() if p.grad is not None]
        return {"gradient_norm": torch.stack(torch._foreach_norm(gradients)).norm()}
