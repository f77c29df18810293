"""What a data set is to the pipeline: the two kinds of source."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from largebatch._errors import UserError
from largebatch._registry import Registry
from largebatch.data.config import DataConfig
from largebatch.data.files import printable

Split = Literal["train", "val"]
datasets: Registry[Callable[..., Any]] = Registry("data.name", importable=True)


class Source(ABC):
    """A finite set of labelled images.

    Attributes:
        num_classes: labels are in [0, num_classes).
        image_shape: (channels, height, width) of the images as the model receives them.
        scale: factor from stored pixels to the range of mean and std (1/255 for uint8 images).
        mean, std: per channel, of the scaled pixels; the model receives (x * scale - mean) / std.
    """

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        scale: float,
    ) -> None:
        channels = image_shape[0]
        assert len(mean) == len(std) == channels, "one mean and one std per channel"
        self.num_classes = num_classes
        self.image_shape = image_shape
        self.mean, self.std, self.scale = mean, std, scale

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""


class ArraySource(Source):
    """A source whose images are held in memory.

    Args:
        images: uint8 or float32, (n, channels, height, width).
        labels: int64, (n,).
        crop_and_flip: whether the standard augmentation pads and crops the images and flips half.
        image_size: side of the images that the model receives (None: as stored).
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        num_classes: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        scale: float = 1 / 255,
        crop_and_flip: bool = False,
        image_size: int | None = None,
    ) -> None:
        assert images.ndim == 4
        assert len(images) == len(labels)
        channels, height, width = images.shape[1:]
        shape = (channels, image_size or height, image_size or width)
        super().__init__(num_classes, shape, mean, std, scale)
        self.images, self.labels = images, labels
        self.crop_and_flip = crop_and_flip

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of `images` and `labels` that hold these samples."""
        return indices


class SampleSource(Source):
    """A source that reads one sample at a time, in worker processes.

    Attributes:
        dtype: of the images that `load` returns.
    """

    dtype: torch.dtype = torch.uint8

    @abstractmethod
    def load(
        self, index: int, epoch: int, seed: int, image_size: int | None, augment: bool
    ) -> tuple[Tensor, int]:
        """Read one sample; all randomness is keyed to (seed, epoch, index).

        Args:
            index: which sample.
            epoch: the epoch that asks for it.
            seed: the run's seed.
            image_size: side of the square image wanted (None: the source's own).
            augment: whether to draw a random view (training) or the fixed one.

        Returns:
            the image, uint8 or float32 (channels, height, width), and its label.

        Raises:
            UnreadableSample: the sample cannot be read.
            UserError: it is not what it should be.
        """


class UnreadableSample(Exception):
    """A sample that cannot be read; the message names the file and the reason in one line."""

    def __init__(self, name: str, reason: object) -> None:
        super().__init__(name, " ".join(str(reason).split()) or type(reason).__name__)

    @property
    def name(self) -> str:
        """The file, or whatever else names the sample."""
        return str(self.args[0])

    def __str__(self) -> str:
        return printable(f"{self.args[0]}: {self.args[1]}")


def required_root(config: DataConfig, expected: str) -> str:
    """Return ``data.root`` or raise the error that says what it should name."""
    if config.root is None:
        raise UserError(f"data.root is not set: data.name={config.name!r} needs {expected}")
    return config.root
