"""ImageNet-shaped noise, to measure everything but reading, without files and host work."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from largebatch.data.config import DataConfig
from largebatch.data.draws import Stream, key
from largebatch.data.memory import ArraySource
from largebatch.data.registry import datasets
from largebatch.data.source import Split

_IMAGENET_TRAIN, _IMAGENET_VAL = 1_281_167, 50_000
_BANK = 128


class SyntheticSource(ArraySource):
    """Samples that repeat a bank of noise images, so that any length costs the same memory."""

    def __init__(self, length: int, images: torch.Tensor, labels: torch.Tensor, num_classes: int):
        half = (0.5,) * images.shape[1]
        # Bytes drawn uniformly have mean 1/2 and standard deviation 1/sqrt(12) of their range.
        super().__init__(images, labels, num_classes, mean=half, std=(12**-0.5,) * len(half))
        self._length = length

    def __len__(self) -> int:
        return self._length

    def rows(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row of the bank that each sample repeats."""
        return indices % len(self.labels)


@datasets.register("synthetic", "ImageNet-shaped noise made on the device, 1,000 classes")
def synthetic(config: DataConfig, split: Split, num_classes: int | None = None) -> SyntheticSource:
    """Build uniform noise of 3 x image_size x image_size (224 by default).

    The length is ``data.limit`` (1,281,167 by default) for training and, in ImageNet's ratio, a
    twenty-fifth of it for validation. Sample i has the pixels and the label of row i mod 128 of a
    bank that is the same on every device.
    """
    size, classes = config.image_size or 224, num_classes or 1000
    generator = torch.Generator().manual_seed(key(0, Stream.PIXELS) >> 1)
    images = torch.randint(0, 256, (_BANK, 3, size, size), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, classes, (_BANK,), generator=generator)
    if split == "train":
        length = config.limit or _IMAGENET_TRAIN
    else:
        length = max(1, config.limit // 25) if config.limit else _IMAGENET_VAL
    return SyntheticSource(length, images, labels, classes)
