"""The base of all sources of labelled images."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch

from largebatch._errors import UserError
from largebatch.data.config import DataConfig
from largebatch.data.image_batch import ImageBatch
from largebatch.data.pieces import PieceReader
from largebatch.data.pipeline import Pipeline
from largebatch.data.source import Delivery, Source


class ImageSource(Source):
    """A finite set of labelled images.

    Attributes:
        num_classes: labels are in [0, num_classes).
        image_shape: (channels, height, width) of the images as the model receives them.
        scale: factor from stored pixels to the range of mean and std (1/255 for uint8 images).
        mean, std: per channel, of the scaled pixels; the model receives (x * scale - mean) / std.
        mirrors: whether a mirrored image keeps its meaning (true for photographs, false for
            digits).
    """

    mirrors = True

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

    def offers(self) -> dict[str, Any]:
        """Return ``num_classes`` and ``image_shape``."""
        return {"num_classes": self.num_classes, "image_shape": self.image_shape}

    def widen(self, num_classes: int, name: str) -> None:
        """Raise the number of classes to ``num_classes``, from ``model.num_classes``.

        Raises:
            UserError: the data have more classes.
        """
        if num_classes < self.num_classes:
            raise UserError(
                f"model.num_classes={num_classes}: data.name={name!r} has "
                f"{self.num_classes} classes"
            )
        self.num_classes = num_classes

    @abstractmethod
    def pieces(self, config: DataConfig, delivery: Delivery) -> PieceReader:
        """Return the reader of raw samples."""

    def reader(self, config: DataConfig, delivery: Delivery) -> Pipeline:
        """Return the pipeline that reads, augments and normalises."""
        return Pipeline(
            self,
            config,
            delivery.seed,
            delivery.device,
            delivery.train,
            delivery.dtype,
            delivery.channels_last,
        )

    def example(self, samples: int, delivery: Delivery, extent: int | None = None) -> ImageBatch:
        """Return blank images of the first class; no file is read, since reading may fail."""
        channels, height, width = self.image_shape
        shape = (samples, channels, extent or height, extent or width)
        blank = torch.zeros(shape, dtype=delivery.dtype, device=delivery.device)
        if delivery.channels_last:
            blank = blank.to(memory_format=torch.channels_last)
        targets = torch.zeros(samples, dtype=torch.int64, device=delivery.device)
        first = np.arange(samples)
        return ImageBatch(blank, targets, first, first, (samples,))
