"""``imagefolder``: photographs in root/train/CLASS/* and root/val/CLASS/*."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from torch import Tensor

from largebatch._errors import UserError
from largebatch.data.config import DataConfig
from largebatch.data.decode import (
    DAMAGED,
    Photograph,
    View,
    evaluation_view,
    is_image,
    training_view,
)
from largebatch.data.draws import SampleDraws, Stream
from largebatch.data.source import (
    SampleSource,
    Split,
    UnreadableSample,
    datasets,
    limited,
    required_root,
)

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LAYOUT = "a folder with train/CLASS/* and val/CLASS/*"


class FileSource(SampleSource):
    """Labelled image files.

    The paths are one block of bytes with offsets: a list of a million strings would be copied page
    by page into every worker as their reference counts change.
    """

    def __init__(
        self, paths: list[str], labels: list[int], num_classes: int, image_size: int | None
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
            with open(path, "rb") as file:
                data = file.read()
            image = Photograph(data)
            pixels = image.show(self.view(image, index, epoch, seed, size, augment))
        except DAMAGED as error:
            raise UnreadableSample(path, error) from None
        return pixels, self.label(index)

    def label(self, index: int) -> int:
        """Return the class of one image."""
        return int(self._labels[index])

    @staticmethod
    def view(
        image: Photograph, index: int, epoch: int, seed: int, size: int, augment: bool
    ) -> View:
        """Return what a sample shows of its image; see `SampleSource.load` for the arguments."""
        if not augment:
            return evaluation_view(image.height, image.width, size)
        crop = SampleDraws(seed, epoch, index, Stream.CROP)
        flip = SampleDraws(seed, epoch, index, Stream.FLIP)
        return training_view(image.height, image.width, size, crop, flip)


@datasets.register("imagefolder", "photographs in root/train/CLASS/* and root/val/CLASS/*")
def imagefolder(config: DataConfig, split: Split, num_classes: int | None = None) -> FileSource:
    """Build the source from a folder; class k is the k-th folder name in sorted order."""
    root = Path(required_root(config, _LAYOUT))
    classes = {name: _classes(root, name) for name in ("train", "val")}
    only_train = sorted(set(classes["train"]) - set(classes["val"]))
    only_val = sorted(set(classes["val"]) - set(classes["train"]))
    if only_train or only_val:
        raise UserError(
            f"data.root={str(root)!r}: class folders differ: only in train: "
            f"{_some(only_train)}; only in val: {_some(only_val)}"
        )
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes[split]):
        files = sorted(find_images(root / split / name))
        paths += files
        labels += [label] * len(files)
    if not paths:
        raise UserError(f"data.root={str(root)!r}: no image in {split}; expected {_LAYOUT}")
    count = limited(len(paths), config, split)
    return FileSource(paths[:count], labels[:count], len(classes[split]), config.image_size)


def find_images(folder: Path | str) -> list[str]:
    """Return the paths of the image files in a folder and the folders below it, unsorted."""
    return [
        os.path.join(where, name)
        for where, _, names in os.walk(folder, followlinks=True)
        for name in names
        if is_image(name)
    ]


def _classes(root: Path, split: str) -> list[str]:
    try:
        with os.scandir(root / split) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError as error:
        raise UserError(
            f"data.root={str(root)!r}: {split}: {error.strerror}; expected {_LAYOUT}"
        ) from None
    if not names:
        raise UserError(f"data.root={str(root)!r}: no class folder in {split}; expected {_LAYOUT}")
    return names


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "none"
