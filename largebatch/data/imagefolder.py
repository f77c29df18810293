"""``imagefolder``: photographs in root/train/CLASS/* and root/val/CLASS/*."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from largebatch._errors import UserError
from largebatch.data.config import DataConfig
from largebatch.data.dali import DaliReader
from largebatch.data.decode import (
    Photograph,
    UnreadableImage,
    View,
    box_view,
    evaluation_view,
    training_view,
)
from largebatch.data.draws import SampleDraws, Stream
from largebatch.data.files import printable
from largebatch.data.limit import limited
from largebatch.data.pieces import PieceReader
from largebatch.data.registry import DataFacts, datasets
from largebatch.data.sample_source import Boxes, SampleSource, default_workers
from largebatch.data.scan import find_classes, find_images
from largebatch.data.source import Delivery, Split, UnreadableSample, required_root

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LAYOUT = "a folder with train/CLASS/* and val/CLASS/*"


class FileSource(SampleSource):
    """Labelled image files.

    The paths are stored as one block of bytes with offsets. A list of a million strings would be
    copied into every worker page by page, as reference counts change.
    """

    def __init__(
        self,
        paths: list[str],
        labels: Sequence[int] | NDArray[np.int64],
        num_classes: int,
        image_size: int | None,
    ) -> None:
        self.size = image_size or 224
        super().__init__(num_classes, (3, self.size, self.size), _MEAN, _STD, 1 / 255)
        encoded = [os.fsencode(path) for path in paths]
        self._paths = b"".join(encoded)
        self._ends = np.cumsum([0] + [len(path) for path in encoded], dtype=np.int64)
        self._labels = np.asarray(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._labels)

    def path(self, index: int) -> str:
        """Return the path of one image."""
        return os.fsdecode(self._paths[self._ends[index] : self._ends[index + 1]])

    def load(
        self, index: int, epoch: int, seed: int, image_size: int | None, augment: bool
    ) -> tuple[Tensor, int]:
        """Read one image as uint8 (3, size, size) with its label; see `SampleSource.load`."""
        path, size = self.path(index), image_size or self.size
        try:
            image = Photograph.read(path)
            pixels = image.show(self.view(image, index, epoch, seed, size, augment))
        except UnreadableImage as error:
            raise UnreadableSample(path, error) from None
        return pixels, self.label(index)

    def crops(
        self, index: int, epoch: int, seed: int, image_size: int | None, boxes: Boxes
    ) -> tuple[Tensor, int]:
        """Read several boxes of one image, each decoded no larger than needed."""
        path, size = self.path(index), image_size or self.size
        try:
            image = Photograph.read(path)
            views = [box_view(box, size) for box in boxes(image.height, image.width)]
            images = torch.stack([image.show(view) for view in views])
        except UnreadableImage as error:
            raise UnreadableSample(path, error) from None
        return images, self.label(index)

    def label(self, index: int) -> int:
        """Return the class of one image."""
        return int(self._labels[index])

    def pieces(self, config: DataConfig, delivery: Delivery) -> PieceReader:
        """Return the reader of the images: DALI, or worker processes."""
        if config.pipeline != "dali":
            return super().pieces(config, delivery)
        augment = delivery.train and config.augment == "standard"
        workers = default_workers() if config.workers is None else config.workers
        return DaliReader(self, delivery.seed, workers, augment, delivery.device)

    @staticmethod
    def view(
        image: Photograph, index: int, epoch: int, seed: int, size: int, augment: bool
    ) -> View:
        """Return the view of an image for a sample; see `SampleSource.load` for the arguments."""
        if not augment:
            return evaluation_view(image.height, image.width, size)
        crop = SampleDraws(seed, epoch, index, Stream.CROP)
        flip = SampleDraws(seed, epoch, index, Stream.FLIP)
        return training_view(image.height, image.width, size, crop, flip)


@datasets.register(
    "imagefolder",
    "photographs in root/train/CLASS/* and root/val/CLASS/*",
    facts=DataFacts(image_files=True),
)
def imagefolder(config: DataConfig, split: Split, num_classes: int | None = None) -> FileSource:
    """Build the source from a folder; class k is the k-th folder name in sorted order.

    `largebatch.data.scan` defines which folders are classes and which files are images. Both splits
    must have the same folders. A folder of val may be empty, a folder of train may not.
    """
    root = Path(required_root(config, _LAYOUT))
    where = f"data.root={str(root)!r}"
    classes = {name: _classes(root, name) for name in ("train", "val")}
    only_train = sorted(set(classes["train"]) - set(classes["val"]))
    only_val = sorted(set(classes["val"]) - set(classes["train"]))
    if only_train or only_val:
        raise UserError(
            f"{where}: class folders differ: only in train: "
            f"{_some(only_train)}; only in val: {_some(only_val)}"
        )
    files = [find_images(root / split / name) for name in classes[split]]
    paths = [path for found in files for path in found]
    labels = np.repeat(np.arange(len(files)), [len(found) for found in files])
    if not paths:
        raise UserError(f"{where}: no image in {split}; expected {_LAYOUT}")
    empty = [name for name, found in zip(classes[split], files, strict=True) if not found]
    if empty and split == "train":
        raise UserError(f"{where}: no image in train of the classes {_some(empty)}")
    chosen = limited(labels, config, split)
    return FileSource(
        [paths[index] for index in chosen], labels[chosen], len(files), config.image_size
    )


def _classes(root: Path, split: str) -> list[str]:
    try:
        names = find_classes(root / split)
    except OSError as error:
        raise UserError(
            f"data.root={str(root)!r}: {split}: {error.strerror}; expected {_LAYOUT}"
        ) from None
    if not names:
        raise UserError(f"data.root={str(root)!r}: no class folder in {split}; expected {_LAYOUT}")
    return names


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(printable, names[:most])) + more if names else "none"
