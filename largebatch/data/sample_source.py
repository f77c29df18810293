"""Images that are read one at a time, in worker processes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from largebatch._cores import usable_cores
from largebatch.data.config import DataConfig
from largebatch.data.crops import resized
from largebatch.data.image_source import ImageSource
from largebatch.data.pieces import PieceReader
from largebatch.data.source import Delivery
from largebatch.data.workers import WorkerReader
from largebatch.processes.environment import detect

_MOST_WORKERS = 16

Boxes: TypeAlias = Callable[[int, int], NDArray[np.int64]]
"""Draws boxes of an image of (height, width): int64 (n, 4) of (top, left, height, width)."""


class SampleSource(ImageSource):
    """A source that reads one sample at a time, in worker processes.

    Attributes:
        dtype: type of the images that `load` returns.
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
            augment: whether to take a random view (training) or the fixed one.

        Returns:
            the image, uint8 or float32 (channels, height, width), and its label.

        Raises:
            UnreadableSample: the sample cannot be read.
            UserError: the sample does not have the required form.
        """

    def crops(
        self, index: int, epoch: int, seed: int, image_size: int | None, boxes: Boxes
    ) -> tuple[Tensor, int]:
        """Read one sample's boxes, each resized to the size of an image: (n, channels, ...).

        Args:
            index, epoch, seed, image_size: as for :meth:`load`.
            boxes: function that draws the boxes from the image's height and width.

        Raises:
            UnreadableSample, UserError: as for :meth:`load`.
        """
        image, label = self.load(index, epoch, seed, image_size, augment=False)
        height, width = image.shape[1:]
        drawn = torch.from_numpy(boxes(height, width))
        images = image.float().expand(len(drawn), *image.shape)
        return resized(images, drawn, (height, width)), label

    def pieces(self, config: DataConfig, delivery: Delivery) -> PieceReader:
        """Return the workers that read the images."""
        augment = delivery.train and config.augment == "standard"
        workers = default_workers() if config.workers is None else config.workers
        pin_memory = delivery.device.type == "cuda"
        return WorkerReader(self, delivery.seed, workers, augment, pin_memory=pin_memory)


def default_workers() -> int:
    """Return the default number of workers: this rank's share of usable cores, from 1 to 16."""
    return min(max(usable_cores() // detect().local_world_size, 1), _MOST_WORKERS)
