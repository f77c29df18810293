"""Small data sets made on the spot, in the official layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from largebatch.data import Batch, DataConfig, Pipeline, Request, Source


def photograph(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    """Return a smooth random image, (height, width, 3): noise would compress to nothing like it."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the root of an image folder: 2 classes, 14 + 6 JPEGs of varying size."""
    for split, count in (("train", 7), ("val", 3)):
        for label, name in enumerate(("ant", "bee")):
            place = tmp_path / split / name
            place.mkdir(parents=True)
            for number in range(count):
                seed = 100 * label + number
                image = photograph(seed, 60 + 5 * number, 90 - 4 * number)
                Image.fromarray(image).save(place / f"{number:02d}.jpg", quality=90)
    return tmp_path


@pytest.fixture
def npz(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes an .npz of 40 + 10 images, some arrays replaced."""

    def write(**changes: object) -> Path:
        rng = np.random.default_rng(0)
        arrays: dict[str, Any] = {
            "x_train": rng.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8),
            "y_train": np.arange(40) % 4,
            "x_test": rng.integers(0, 256, (10, 16, 16, 3), dtype=np.uint8),
            "y_test": np.arange(10) % 4,
        }
        arrays.update(changes)
        path = tmp_path / "set.npz"
        np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
        return path

    return write


@pytest.fixture
def ask() -> Callable[..., Request]:
    """Return a function that asks for samples at positions 0, 1, 2, ..."""

    def request(indices: object, epoch: int = 0, **changes: Any) -> Request:
        chosen = np.asarray(indices, dtype=np.int64)
        return Request(epoch, chosen, np.arange(len(chosen)), **changes)

    return request


@pytest.fixture
def read() -> Callable[..., list[Batch]]:
    """Return a function that reads requests with a pipeline of their own."""

    def batches(
        source: Source, config: DataConfig, requests: list[Request], **options: Any
    ) -> list[Batch]:
        with Pipeline(source, config, seed=1, **options) as pipeline:
            return list(pipeline.read(requests))

    return batches
