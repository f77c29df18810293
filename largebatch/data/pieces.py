"""What a pipeline of images asks of a source, and of who reads its raw samples."""

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
        failures: of each unreadable sample its place in the piece, its name and the reason; the
            images and labels are those of the others.
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
        """End what works in the background."""
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
        """Return what a sample shows of its image."""
        ...


class Images(Protocol):
    """Labelled images, see :class:`~largebatch.data.image_source.ImageSource`."""

    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float

    def pieces(self, config: DataConfig, delivery: Delivery) -> PieceReader:
        """Return who reads the raw samples."""
        ...
