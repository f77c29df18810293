"""The handwritten digits as plain tensors, divided anew for each seed."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

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
