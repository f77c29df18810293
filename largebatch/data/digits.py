"""The handwritten digits that scikit-learn bundles: 1,797 images of 8x8, no download."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution

import numpy as np
import numpy.typing as npt
import torch

from largebatch._errors import UserError
from largebatch.data.config import DataConfig
from largebatch.data.draws import Stream, uniform
from largebatch.data.limit import limited
from largebatch.data.memory import ArraySource
from largebatch.data.registry import datasets
from largebatch.data.source import Split

# Mean and standard deviation of the whole set, in units of the largest pixel value, 16.
_MEAN, _STD = (0.3053,), (0.3761,)


@datasets.register(
    "digits",
    "8x8 handwritten digits bundled with scikit-learn, 10 classes",
    "Alpaydin and Kaynak 1998, UCI optical recognition of handwritten digits",
)
def digits(config: DataConfig, split: Split, num_classes: int | None = None) -> ArraySource:
    """Build the digits.

    The set has no official split. Here the split is fixed: from each class, a fifth of the images
    (rounded down), those with the smallest keyed hash of their position, is held out. This gives
    1,442 training and 355 validation images.
    """
    table = _table()
    images = torch.from_numpy(table[:, :-1].astype(np.uint8)).view(-1, 1, 8, 8)
    labels = table[:, -1]
    draws = uniform(0, 0, np.arange(len(labels)), Stream.SPLIT)[:, 0]
    held_out = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        members = np.flatnonzero(labels == digit)
        held_out[members[np.argsort(draws[members])[: len(members) // 5]]] = True
    chosen = np.flatnonzero(~held_out if split == "train" else held_out)
    chosen = chosen[limited(labels[chosen], config, split)]
    return ArraySource(
        images[chosen],
        torch.from_numpy(labels[chosen]),
        num_classes=10,
        mean=_MEAN,
        std=_STD,
        scale=1 / 16,
        image_size=config.image_size,
    )


def _table() -> npt.NDArray[np.int64]:
    """Return scikit-learn's table: a row an image, its 64 pixels and its digit.

    The file is read in place: to import scikit-learn for it takes every rank a second.
    """
    try:
        package = distribution("scikit-learn")
    except PackageNotFoundError:
        raise UserError(
            "data.name='digits': scikit-learn is not installed; pip install scikit-learn"
        ) from None
    file = package.locate_file("sklearn/datasets/data/digits.csv.gz")
    return np.loadtxt(str(file), delimiter=",", dtype=np.int64)
