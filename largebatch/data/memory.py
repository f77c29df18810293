"""Images held in memory: a batch is a gather, a random crop and a random flip."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from largebatch.data.config import DataConfig
from largebatch.data.draws import Stream, integers, uniform
from largebatch.data.image_source import ImageSource
from largebatch.data.pieces import Samples
from largebatch.data.request import Request
from largebatch.data.source import Delivery

# Larger sets stay in host memory, and each batch is copied to the device.
_RESIDENT_BYTES = 4 << 30


class ArraySource(ImageSource):
    """A source whose images are held in memory.

    Args:
        images: uint8 or float32, (n, channels, height, width).
        labels: int64, (n,).
        crop_and_flip: whether training pads and crops the images and flips half of them.
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
        self.crop_and_flip = self.mirrors = crop_and_flip

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of `images` and `labels` that hold these samples."""
        return indices

    def pieces(self, config: DataConfig, delivery: Delivery) -> ArrayReader:
        """Return the reader that gathers the images of a batch."""
        augment = delivery.train and config.augment == "standard"
        return ArrayReader(self, delivery.seed, delivery.device, augment, delivery.channels_last)


class ArrayReader:
    """Reads an `ArraySource` in the calling thread.

    Gathering a batch takes microseconds, less than passing it between threads. If the set fits on
    the device it is kept there. Then a batch costs only the transfer of its indices.

    Args:
        source: the images.
        seed: the run's seed.
        device: where the batches are wanted.
        augment: whether to apply the source's random crop and flip.
        channels_last: keep the pixels in channels-last order, so that no batch is transposed.
    """

    def __init__(
        self,
        source: ArraySource,
        seed: int,
        device: torch.device,
        augment: bool,
        channels_last: bool,
    ) -> None:
        self._source, self._seed = source, seed
        self._augment = augment and source.crop_and_flip
        self._last = channels_last and source.images.shape[1] > 1
        self._home = device if source.images.nbytes <= _RESIDENT_BYTES else torch.device("cpu")
        images = source.images.permute(0, 2, 3, 1) if self._last else source.images
        self._images = images.contiguous().to(self._home)
        self._labels = source.labels.to(self._home)

    def read(self, requests: Iterable[Request]) -> Iterator[tuple[Request, list[Samples]]]:
        """Yield each request with its samples, in order."""
        for request in requests:
            rows = self._at_home(self._source.rows(request.indices))
            images = self._images.index_select(0, rows)
            if self._augment and len(request.indices):
                images = self._crop_and_flip(images, request)
            if self._last:
                images = images.permute(0, 3, 1, 2)
            yield request, [Samples(images, self._labels.index_select(0, rows))]

    def close(self) -> None:
        """Do nothing: there are no workers."""

    def _at_home(self, array: NDArray[np.int64]) -> Tensor:
        tensor = torch.from_numpy(array)
        if self._home.type == "cuda":
            return tensor.pin_memory().to(self._home, non_blocking=True)
        return tensor.to(self._home)

    def _crop_and_flip(self, images: Tensor, request: Request) -> Tensor:
        """Pad by an eighth of the side with zeros, crop at random, mirror half (He et al. 2015,
        arXiv:1512.03385, section 4.2: 4 pixels for CIFAR)."""
        rows, columns = (1, 2) if self._last else (2, 3)
        height, width = images.shape[rows], images.shape[columns]
        pad_rows, pad_columns = height // 8, width // 8
        padding = [pad_columns, pad_columns, pad_rows, pad_rows]
        padded = torch.nn.functional.pad(images, [0, 0, *padding] if self._last else padding)
        keyed = self._seed, request.epoch, request.indices
        top = integers(*keyed, Stream.CROP, 2 * pad_rows + 1, 2)[:, 0]
        left = integers(*keyed, Stream.CROP, 2 * pad_columns + 1, 2)[:, 1]
        # Every window of the padded images, as a view; indexing copies one of each image.
        windows = padded.unfold(rows, height, 1).unfold(columns, width, 1)
        sample = torch.arange(len(images), device=self._home)
        across = sample, self._at_home(top), self._at_home(left)
        if self._last:
            cropped = windows[across].permute(0, 2, 3, 1).contiguous()
        else:
            cropped = windows[across[0], :, across[1], across[2]]
        flipped = self._at_home(np.flatnonzero(uniform(*keyed, Stream.FLIP)[:, 0] < 0.5))
        return cropped.index_copy_(0, flipped, cropped.index_select(0, flipped).flip(columns))
