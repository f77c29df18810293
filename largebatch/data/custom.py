"""``package.module:callable``: any map-style data set as a source."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from largebatch._errors import UserError
from largebatch.data.config import DataConfig
from largebatch.data.draws import Stream, key
from largebatch.data.source import SampleSource, Split, UnreadableSample, limited


class DatasetSource(SampleSource):
    """A map-style data set that returns (image, label).

    Images are PIL images, numpy arrays (height, width, channels) or tensors (channels, height,
    width), uint8 or float. Bytes are scaled to [0, 1]; ``mean`` and ``std`` attributes of the data
    set, per channel, normalise after that. Before each sample the generators of torch, numpy and
    ``random`` are seeded from (seed, epoch, index).
    """

    def __init__(
        self, name: str, dataset: Any, length: int, num_classes: int, image_size: int | None
    ) -> None:
        self._name, self._dataset, self._length = name, dataset, length
        self._size = image_size
        with _Seeded(0):
            image, _ = self._sample(0)
        channels, height, width = image.shape
        shape = channels, image_size or height, image_size or width
        mean = tuple(float(value) for value in getattr(dataset, "mean", (0.0,) * shape[0]))
        std = tuple(float(value) for value in getattr(dataset, "std", (1.0,) * shape[0]))
        if not len(mean) == len(std) == shape[0] or min(std) <= 0:
            raise UserError(
                f"data.name={name!r}: mean and std need one value per channel ({shape[0]}), "
                "std above 0"
            )
        scale = 1 / 255 if image.dtype == torch.uint8 else 1.0
        super().__init__(num_classes, shape, mean, std, scale)

    def __len__(self) -> int:
        return self._length

    def load(
        self, index: int, epoch: int, seed: int, image_size: int | None, augment: bool
    ) -> tuple[Tensor, int]:
        """Read one sample with all generators keyed to it; see `SampleSource.load`."""
        with _Seeded(key(seed, epoch, index, Stream.SAMPLE)):
            try:
                image, label = self._sample(index)
            except OSError as error:
                raise UnreadableSample(f"{self._name}[{index}]", error) from None
        if not 0 <= label < self.num_classes:
            raise UserError(
                f"data.name={self._name!r}: label {label} of sample {index} is out of range; "
                f"labels are 0 to {self.num_classes - 1}"
            )
        size = image_size or self._size
        if size is not None and tuple(image.shape[-2:]) != (size, size):
            image = torch.nn.functional.interpolate(
                image[None], (size, size), mode="bilinear", antialias=True
            )[0]
        return image, label

    def _sample(self, index: int) -> tuple[Tensor, int]:
        sample = self._dataset[index]
        if not isinstance(sample, (tuple, list)) or len(sample) != 2:
            raise UserError(
                f"data.name={self._name!r}: sample {index} is {type(sample).__name__}; "
                "expected (image, label)"
            )
        image, label = sample
        if not isinstance(image, Tensor):
            # A copy: PIL lends its memory read-only.
            array = np.array(image)
            array = array[:, :, None] if array.ndim == 2 else array
            image = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
        if image.ndim != 3 or not (image.dtype == torch.uint8 or image.is_floating_point()):
            raise UserError(
                f"data.name={self._name!r}: image {index} is {image.dtype} of shape "
                f"{tuple(image.shape)}; expected uint8 or float (channels, height, width)"
            )
        return image if image.dtype == torch.uint8 else image.float(), int(label)


class _Seeded:
    """Seeds torch's CPU generator, numpy's and Python's, and puts their states back."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    # ruff: noqa: NPY002 - the user's data set draws from the global generators, so they are seeded.
    def __enter__(self) -> None:
        self._states = torch.get_rng_state(), np.random.get_state(), random.getstate()
        torch.default_generator.manual_seed(self._seed)
        np.random.seed(self._seed & 0xFFFFFFFF)
        random.seed(self._seed)

    def __exit__(self, *_: object) -> None:
        torch.set_rng_state(self._states[0])
        np.random.set_state(self._states[1])
        random.setstate(self._states[2])


def custom_source(
    make: Callable[..., Any], config: DataConfig, split: Split, num_classes: int | None
) -> DatasetSource:
    """Call the user's function with the split and wrap the data set it returns.

    The number of classes is ``model.num_classes``, else the data set's ``num_classes`` attribute,
    else the length of its ``classes``.
    """
    dataset = make(split)
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise UserError(
            f"data.name={config.name!r}: returned {type(dataset).__name__}; expected a map-style "
            "data set with __getitem__ and __len__"
        )
    length = limited(len(dataset), config, split)
    if length == 0:
        raise UserError(f"data.name={config.name!r}: the data set of split {split!r} is empty")
    if num_classes is None:
        num_classes = getattr(dataset, "num_classes", None)
    if num_classes is None and hasattr(dataset, "classes"):
        num_classes = len(dataset.classes)
    if num_classes is None:
        raise UserError(
            f"data.name={config.name!r}: set model.num_classes, or give the data set an attribute "
            "num_classes or classes"
        )
    return DatasetSource(config.name, dataset, length, num_classes, config.image_size)
