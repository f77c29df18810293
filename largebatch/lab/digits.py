"""The digits as tensors, for experiments whose training is not backpropagation through a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from largebatch.data import DataConfig
from largebatch.data.build import build_source
from largebatch.optim import SGD

CLASSES = 10


@dataclass(frozen=True)
class Digits:
    """scikit-learn's digits, divided as the package's runs have them.

    Attributes:
        images: (1442, 1, 8, 8), normalised. targets: int64 (1442,).
        held_images, held_targets: the 355 that are held out.
    """

    images: Tensor
    targets: Tensor
    held_images: Tensor
    held_targets: Tensor

    @staticmethod
    def load(dtype: torch.dtype = torch.float32) -> Digits:
        """Read them in this type."""
        parts: list[Tensor] = []
        for split in ("train", "val"):
            source: Any = build_source(DataConfig(name="digits"), split)
            images = (source.images.double() * source.scale - source.mean[0]) / source.std[0]
            parts += [images.to(dtype), source.labels]
        return Digits(*parts)

    def batches(self, seed: int, batch: int, epochs: int) -> list[tuple[Tensor, Tensor]]:
        """Return (images, targets) of whole batches, in a new order every epoch."""
        generator = torch.Generator().manual_seed(seed)
        orders = [torch.randperm(len(self.targets), generator=generator) for _ in range(epochs)]
        rows = [part for o in orders for part in o.split(batch) if len(part) == batch]
        return [(self.images[part], self.targets[part]) for part in rows]

    def accuracy(self, model: Callable[[Tensor], Tensor]) -> float:
        """Return the share of the held-out digits whose largest output is the right one."""
        with torch.no_grad():
            right = model(self.held_images).argmax(1) == self.held_targets
        return float(right.double().mean())


def descend(
    parameters: Iterable[Tensor],
    batches: Sequence[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    lr: float,
) -> None:
    """Take a step of SGD with momentum for each batch, at a rate that falls to 0 in a line."""
    optimizer = SGD(parameters, lr=lr, momentum=0.9)
    for number, (images, targets) in enumerate(batches):
        optimizer.param_groups[0]["lr"] = lr * (1 - number / len(batches))
        optimizer.zero_grad()
        loss(images, targets).backward()
        optimizer.step()
