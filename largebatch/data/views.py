"""``data.augment: views``: each image in two random views, for contrastive learning.

Chen et al. 2020, "A simple framework for contrastive learning of visual representations" (SimCLR),
section 2.1 and appendix A: a random resized crop, mirrored half the time, then the colour
distortion of `jitter`. All random numbers are keyed to (seed, epoch, sample), so workers, ranks and
batches do not affect a view. Validation always shows the views of epoch 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from largebatch._errors import UserError
from largebatch.data import crops, jitter
from largebatch.data.config import DataConfig
from largebatch.data.draws import Stream, uniform
from largebatch.data.image_source import ImageSource
from largebatch.data.memory import ArrayReader, ArraySource
from largebatch.data.pieces import PieceReader, Samples
from largebatch.data.pipeline import Pipeline
from largebatch.data.request import Request
from largebatch.data.sample_source import SampleSource, default_workers
from largebatch.data.source import Delivery, Order, Reader, Source
from largebatch.data.view_batch import ViewBatch
from largebatch.data.workers import WorkerReader

VIEWS = 2
_COUNT = crops.COUNT + 1 + jitter.COUNT


def numbers_of(seed: int, epoch: int, indices: NDArray[np.int64]) -> NDArray[np.float64]:
    """Draw the random numbers of samples' views: float64 (n, views, numbers)."""
    drawn = uniform(seed, epoch, indices, Stream.VIEWS, VIEWS * _COUNT)
    return drawn.reshape(len(indices), VIEWS, _COUNT)


class ViewSource(Source):
    """A source that gives two views of each image of another source.

    Args:
        plain: the images.
        config: the ``data`` section.

    Raises:
        UserError: the source has no images, or images with a number of channels other than 1 and 3.
    """

    def __init__(self, plain: Source, config: DataConfig) -> None:
        where = f"data.augment=views: data.name={config.name!r}"
        if not isinstance(plain, (ArraySource, SampleSource)):
            raise UserError(f"{where} has no images to take views of")
        if plain.image_shape[0] not in (1, 3):
            raise UserError(f"{where} has {plain.image_shape[0]} channels; views are of 1 or 3")
        self.plain = plain

    def __len__(self) -> int:
        return len(self.plain)

    def offers(self) -> dict[str, Any]:
        """Return the offers of the plain images, and ``views``, the number of views per image."""
        return {**self.plain.offers(), "views": VIEWS}

    def widen(self, num_classes: int, name: str) -> None:
        """Raise the number of classes of the images to ``num_classes``."""
        self.plain.widen(num_classes, name)

    def order(self, seed: int) -> Order:
        """Return the training order of the plain images."""
        return self.plain.order(seed)

    def reader(self, config: DataConfig, delivery: Delivery) -> Reader:
        """Return the reader of views; with another ``data.augment``, of the plain images."""
        if config.augment != "views":
            return self.plain.reader(config, delivery)
        return ViewReader(_Pairs(self.plain), config, delivery)

    def example(self, samples: int, delivery: Delivery, extent: int | None = None) -> ViewBatch:
        """Return blank views of the first class."""
        blank = self.plain.example(VIEWS * samples, delivery, extent)
        first = np.arange(samples)
        views = blank.inputs.unflatten(0, (samples, VIEWS))
        return ViewBatch(views, blank.targets[::VIEWS], first, first, (samples,))


class ViewReader(Reader):
    """Reads both views of a sample as one image with twice the channels, and separates them."""

    def __init__(self, pairs: _Pairs, config: DataConfig, delivery: Delivery) -> None:
        keyed = delivery.seed, delivery.device, delivery.train, delivery.dtype
        self._pipeline = Pipeline(pairs, config, *keyed, delivery.channels_last)
        self._last = delivery.channels_last

    def read(self, requests: Iterable[Request]) -> Iterator[ViewBatch]:
        """Yield the batch of each request, in order."""
        for batch in self._pipeline.read(requests):
            views = batch.inputs.unflatten(1, (VIEWS, -1))
            if self._last and len(views):
                images = views.flatten(0, 1).contiguous(memory_format=torch.channels_last)
                views = images.unflatten(0, (-1, VIEWS))
            yield ViewBatch(views, batch.targets, batch.indices, batch.positions, batch.ghosts)

    def close(self) -> None:
        """End the workers."""
        self._pipeline.close()


class _Pairs:
    """What a pipeline asks of a source, whose images are pairs of views."""

    def __init__(self, plain: ArraySource | SampleSource) -> None:
        self.plain, self.scale = plain, plain.scale
        self.mean, self.std = plain.mean * VIEWS, plain.std * VIEWS
        self.image_shape = _doubled(plain.image_shape)

    def pieces(self, config: DataConfig, delivery: Delivery) -> PieceReader:
        """Return who reads the views: worker processes, or the calling thread from memory."""
        if isinstance(self.plain, ArraySource):
            return _FromMemory(self.plain, config, delivery)
        workers = default_workers() if config.workers is None else config.workers
        pinned = delivery.device.type == "cuda"
        one_by_one = _OneByOne(self.plain, config)
        return WorkerReader(one_by_one, delivery.seed, workers, True, pin_memory=pinned)


class _OneByOne:
    """Both views of one sample, for workers."""

    def __init__(self, plain: SampleSource, config: DataConfig) -> None:
        self._plain, self._config = plain, config
        self.image_shape, self.dtype = _doubled(plain.image_shape), plain.dtype

    def load(
        self, index: int, epoch: int, seed: int, image_size: int | None, augment: bool
    ) -> tuple[Tensor, int]:
        """Read one sample: (views x channels, height, width), and its label."""
        drawn = numbers_of(seed, epoch, np.array([index]))[0]
        least = self._config.least_area

        def boxes(height: int, width: int) -> NDArray[np.int64]:
            return crops.boxes(drawn, height, width, least)

        images, label = self._plain.crops(index, epoch, seed, image_size, boxes)
        numbers = torch.from_numpy(drawn[:, crops.COUNT :])
        views = _shown(images, numbers, self._plain, self._config)
        if not self.dtype.is_floating_point:
            views = (views / self._plain.scale).round_().to(self.dtype)
        else:
            views = views / self._plain.scale
        return views.flatten(0, 1), label


class _FromMemory(ArrayReader):
    """Reads an `ArraySource` in the calling thread, on the device where the images live."""

    def __init__(self, source: ArraySource, config: DataConfig, delivery: Delivery) -> None:
        super().__init__(source, delivery.seed, delivery.device, False, False)
        self._config = config

    def read(self, requests: Iterable[Request]) -> Iterator[tuple[Request, list[Samples]]]:
        """Yield each request with its samples, in order."""
        height, width = self._images.shape[2:]
        for request, (plain,) in super().read(requests):
            count = len(request.indices)
            drawn = numbers_of(self._seed, request.epoch, request.indices).reshape(-1, _COUNT)
            boxes = crops.boxes(drawn, height, width, self._config.least_area)
            images = plain.images.repeat_interleave(VIEWS, 0).float()
            images = crops.resized(images, self._at_home(boxes), (height, width))
            numbers = torch.from_numpy(drawn[:, crops.COUNT :]).to(self._home)
            shown = _shown(images, numbers, self._source, self._config) / self._source.scale
            pairs = shown.view(count, *_doubled(tuple(plain.images.shape[1:])))
            yield request, [Samples(pairs, plain.labels)]


def _doubled(shape: tuple[int, ...]) -> tuple[int, int, int]:
    channels, height, width = shape
    return VIEWS * channels, height, width


def _shown(images: Tensor, numbers: Tensor, source: ImageSource, config: DataConfig) -> Tensor:
    """Mirror crops and distort their colours: float32 (n, channels, height, width) in [0, 1].

    Raises:
        UserError: their values are not within the range that colours have.
    """
    images = images.float() * source.scale
    if len(images) and (images.amin() < 0 or images.amax() > 1 + 1e-6) and config.jitter > 0:
        raise UserError(
            f"data.jitter={config.jitter}: images of data.name={config.name} are not within 0 and"
            " 1; take bytes, or data.jitter=0"
        )
    if source.mirrors:
        mirrored = (numbers[:, 0] < 0.5).view(-1, 1, 1, 1)
        images = torch.where(mirrored, images.flip(3), images)
    return jitter.distorted(images, numbers[:, 1:], config.jitter, config.blur)
