"""The handwritten digits as plain tensors, divided anew for each seed, and perceptrons for them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from largebatch.data import DataConfig
from largebatch.data.build import build_source
from largebatch.data.memory import ArraySource


class Digits(NamedTuple):
    """Normalised pixels (n, 64) and labels (n,), to train with and held out."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def digits(train: int, seed: int, dtype: torch.dtype = torch.float32) -> Digits:
    """Draw ``train`` of the 1,797 digits to train with; the rest is held out."""
    images, labels = _all()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    x, y = images[order].to(dtype), labels[order]
    return Digits(x[:train], y[:train], x[train:], y[train:])


@cache
def _all() -> tuple[Tensor, Tensor]:
    images, labels = [], []
    for split in ("train", "val"):
        source = build_source(DataConfig(), split)
        assert isinstance(source, ArraySource)
        images.append((source.images.flatten(1) * source.scale - source.mean[0]) / source.std[0])
        labels.append(source.labels)
    return torch.cat(images), torch.cat(labels)


def perceptron(
    *hidden: int, seed: int, norm: bool = False, dtype: torch.dtype = torch.float32
) -> nn.Sequential:
    """Return linear layers with ReLU between them, after batch norm or without."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((64, *hidden)):
        layers.append(nn.Linear(inputs, outputs, dtype=dtype))
        layers += [nn.BatchNorm1d(outputs, dtype=dtype)] if norm else []
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(hidden[-1], 10, dtype=dtype))


def batches(count: int, size: int, seed: int) -> Iterator[Tensor]:
    """Yield the rows of batches without end, every epoch in an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator).split(size)


def step(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor) -> Tensor:
    """Take a step down the cross-entropy of a batch; return the loss before it."""
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def judged(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, int]:
    """Return the mean cross-entropy and the number of mistakes."""
    outputs = model(x)
    return float(nn.functional.cross_entropy(outputs, y)), int((outputs.argmax(1) != y).sum())
