"""Weights other than the last step's: their moving average, and swapping any of them in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from largebatch.optim.parameters import local
from largebatch.schedule import half_life_factor


class WeightAverage:
    """Exponential moving average of a model's parameters, its half-life counted in samples.

    ``average <- f average + (1 - f) weight`` after every step, ``f = 2^(-batch / half_life)``, so
    that the average does not depend on how the samples are cut into batches.
    """

    def __init__(self, model: nn.Module, half_life: float) -> None:
        self.half_life = half_life
        self._weights = [p.detach() for p in model.parameters()]
        self.tensors = {n: p.detach().clone() for n, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, batch: int, found_inf: Tensor | None = None) -> None:
        """Take in the weights after a step of ``batch`` samples, unless it was left out.

        Args:
            found_inf: 0-d, not 0 if the step was left out.
        """
        factor = half_life_factor(batch, self.half_life)
        if found_inf is None:
            torch._foreach_lerp_(list(self.tensors.values()), self._weights, 1 - factor)
            return
        for average, weight in zip(self.tensors.values(), self._weights, strict=True):
            here = local(average)
            share = torch.where(found_inf != 0, 0.0, 1 - factor).to(here.device, here.dtype)
            here.lerp_(local(weight), share)


@contextmanager
def swapped_in(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Let ``model`` hold other values under the names given, for the length of a block.

    Values are copied, not exchanged: an engine may keep views of the model's memory.
    """
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    targets = [own[name].detach() for name in tensors]
    saved = [target.clone() for target in targets]
    try:
        for target, tensor in zip(targets, tensors.values(), strict=True):
            target.copy_(tensor)
        yield
    finally:
        for target, tensor in zip(targets, saved, strict=True):
            target.copy_(tensor)
