"""The moving average of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.distributed.sharding import part_like, whole
from largebatch.optim.parameters import local
from largebatch.probes.instrument import Instrument, Moment
from largebatch.probes.tensors import check_tensors
from largebatch.schedule import half_life_factor


class WeightAverage(Instrument):
    """Exponential moving average of a model's parameters, its half-life counted in samples.

    After every step ``average <- f average + (1 - f) weight`` with ``f = 2^(-batch / half_life)``.
    So the memory of the average, in samples, does not depend on the batch size.

    Attributes:
        tensors: the average, by parameter name.
    """

    name = "average"
    resumes = True

    def __init__(self, model: nn.Module, half_life: float) -> None:
        self.half_life = half_life
        self._weights = [p.detach() for p in model.parameters()]
        self.tensors = {n: p.detach().clone() for n, p in model.named_parameters()}

    def measure(self, at: Moment) -> Mapping[str, Tensor]:
        """Update the average after a step; returns no figure."""
        self.update(at.step.size, at.left_out)
        return {}

    @torch.no_grad()
    def update(self, batch: int, found_inf: Tensor | None = None) -> None:
        """Update the average after a step of ``batch`` samples, unless the step was skipped.

        Args:
            found_inf: 0-d, not 0 if the step was skipped.
        """
        factor = half_life_factor(batch, self.half_life)
        if found_inf is None:
            torch._foreach_lerp_(list(self.tensors.values()), self._weights, 1 - factor)
            return
        for average, weight in zip(self.tensors.values(), self._weights, strict=True):
            here = local(average)
            share = torch.where(found_inf != 0, 0.0, 1 - factor).to(here.device, here.dtype)
            here.lerp_(local(weight), share)

    def state(self) -> dict[str, Tensor]:
        """Return the average in whole tensors."""
        tensors: dict[str, Tensor] = whole(self.tensors)
        return tensors

    def check(self, state: Any) -> None:
        """Require an average that fits this model."""
        check_tensors(state, self.tensors)

    def load(self, state: Any) -> None:
        """Restore an average."""
        for name, tensor in self.tensors.items():
            tensor.copy_(part_like(state[name], tensor))
