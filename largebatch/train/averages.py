"""Weights other than the last step's: their moving average, and swapping any of them in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

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
    def update(self, batch: int) -> None:
        """Take in the weights after a step of ``batch`` samples."""
        factor = half_life_factor(batch, self.half_life)
        torch._foreach_lerp_(list(self.tensors.values()), self._weights, 1 - factor)


@contextmanager
def swapped_in(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Let ``model`` hold other values under the names given, for the length of a block."""
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    saved = {name: own[name].data for name in tensors}
    try:
        for name, tensor in tensors.items():
            own[name].data = tensor.data
        yield
    finally:
        for name, tensor in saved.items():
            own[name].data = tensor
