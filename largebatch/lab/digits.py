"""The handwritten digits as tensors, in the runs' split or in a random split by seed."""

from __future__ import annotations

import torch
from torch import Tensor

from largebatch.data import DataConfig, build_source
from largebatch.data.memory import ArraySource
from largebatch.data.source import Split

CLASSES = 10

Samples = tuple[Tensor, Tensor]
"""Inputs, normalised, and targets."""


def digits(split: Split, dtype: torch.dtype = torch.float32, limit: int | None = None) -> Samples:
    """Return images (n, 1, 8, 8) as a run sees them, and their classes.

    There are 1,442 to train with and 355 held out; ``limit`` is the run's ``data.limit``.
    """
    source = build_source(DataConfig(name="digits", limit=limit), split)
    assert isinstance(source, ArraySource)
    mean, std = (torch.tensor(v, dtype=dtype).view(-1, 1, 1) for v in (source.mean, source.std))
    return (source.images.to(dtype) * source.scale - mean) / std, source.labels


def drawn_digits(
    count: int, seed: int, dtype: torch.dtype = torch.float32
) -> tuple[Samples, Samples]:
    """Draw ``count`` of all 1,797 digits to train with; return these and the others."""
    parts = zip(digits("train", dtype), digits("val", dtype), strict=True)
    images, targets = (torch.cat(part) for part in parts)
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    first, rest = order[:count], order[count:]
    return (images[first], targets[first]), (images[rest], targets[rest])
