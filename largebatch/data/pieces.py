"""Interfaces between an image pipeline, its source and the readers of raw samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from largebatch.data.config import DataConfig
from largebatch.data.decode import Photograph, View
from largebatch.data.request import Request
from largebatch.data.source import Delivery


@dataclass
class Samples:
    """Raw samples: a whole request, or a piece of one.

    Attributes:
        images: uint8 or float32 (n, channels, height, width).
        labels: int64 (n,).
        failures: for each unreadable sample, its place in the piece, its name and the reason.
            Images and labels hold the other samples only.
    """

    images: Tensor
    labels: Tensor
    failures: list[tuple[int, str, str]] = field(default_factory=list)


class PieceReader(Protocol):
    """Reads the raw samples of requests."""

    def read(self, requests: Iterable[Request]) -> Iterator[tuple[Request, list[Samples]]]:
        """Yield each request with its samples, in order."""
        ...

    def close(self) -> None:
        """End background work."""
        ...


class Samplewise(Protocol):
    """Images read one by one, see :class:`~largebatch.data.sample_source.SampleSource`."""

    image_shape: tuple[int, int, int]
    dtype: torch.dtype

    def load(
        self, index: int, epoch: int, seed: int, image_size: int | None, augment: bool
    ) -> tuple[Tensor, int]:
        """Read one sample."""
        ...


class ImageFiles(Protocol):
    """Image files, see :class:`~largebatch.data.imagefolder.FileSource`."""

    size: int

    def path(self, index: int) -> str:
        """Return the path of one image."""
        ...

    def label(self, index: int) -> int:
        """Return the class of one image."""
        ...

    def view(
        self, image: Photograph, index: int, epoch: int, seed: int, size: int, augment: bool
    ) -> View:
        """Return the view of an image for a sample."""
        ...


class Images(Protocol):
    """Labelled images, see :class:`~largebatch.data.image_source.ImageSource`."""

    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float

    def pieces(self, config: DataConfig, delivery: Delivery) -> PieceReader:
        """Return the reader of raw samples."""
        ...
