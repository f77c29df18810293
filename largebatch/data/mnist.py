"""MNIST and Fashion-MNIST, read from the IDX files in torchvision's layout."""

from __future__ import annotations

import gzip
import math
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from numpy.typing import NDArray

from largebatch._errors import UserError
from largebatch.data.config import DataConfig
from largebatch.data.files import open_file, refuse_beyond_memory
from largebatch.data.limit import limited
from largebatch.data.memory import ArraySource
from largebatch.data.registry import datasets
from largebatch.data.source import Split, required_root

_CLASSES = 10


@datasets.register(
    "mnist",
    "28x28 handwritten digits, 60,000 + 10,000, 10 classes",
    "LeCun, Bottou, Bengio and Haffner 1998",
)
def mnist(config: DataConfig, split: Split, num_classes: int | None = None) -> ArraySource:
    """Build MNIST from ``data.root/MNIST/raw``."""
    return _idx_source(config, split, "MNIST", mean=0.1307, std=0.3081)


@datasets.register(
    "fashion_mnist",
    "28x28 articles of clothing, 60,000 + 10,000, 10 classes",
    "Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747",
)
def fashion_mnist(config: DataConfig, split: Split, num_classes: int | None = None) -> ArraySource:
    """Build Fashion-MNIST from ``data.root/FashionMNIST/raw``."""
    return _idx_source(config, split, "FashionMNIST", mean=0.2860, std=0.3530)


def _idx_source(
    config: DataConfig, split: Split, folder: str, mean: float, std: float
) -> ArraySource:
    root = required_root(
        config, f"the folder that holds {folder}/raw/train-images-idx3-ubyte and its siblings"
    )
    raw = Path(root) / folder / "raw"
    prefix = "train" if split == "train" else "t10k"
    images = read_idx(raw / f"{prefix}-images-idx3-ubyte", dimensions=3)
    labels = read_idx(raw / f"{prefix}-labels-idx1-ubyte", dimensions=1)
    if len(images) != len(labels):
        raise UserError(
            f"data.root={root!r}: {len(images)} {prefix} images but {len(labels)} labels"
        )
    if images.size == 0:
        raise UserError(f"data.root={root!r}: no {prefix} image in it")
    wrong = np.flatnonzero(labels >= _CLASSES)
    if wrong.size:
        raise UserError(
            f"data.root={root!r}: label {labels[wrong[0]]} of {prefix} image {wrong[0]} is out of "
            f"range; labels are 0 to {_CLASSES - 1}"
        )
    chosen = limited(labels, config, split)
    return ArraySource(
        torch.from_numpy(images[chosen]).unsqueeze(1),
        torch.from_numpy(labels[chosen].astype(np.int64)),
        num_classes=_CLASSES,
        mean=(mean,),
        std=(std,),
        image_size=config.image_size,
    )


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, plain or with ``.gz`` appended to its name.

    Args:
        path: the file without ``.gz``.
        dimensions: how many dimensions the array must have.

    Raises:
        UserError: the file is absent, is not IDX, or its length differs from its header.
    """
    packed = path.with_name(path.name + ".gz")
    # Header: two zero bytes, 8 for unsigned bytes, the number of dimensions, each size big-endian.
    start = 4 + 4 * dimensions
    try:
        with ExitStack() as stack:
            plain = path.exists()
            file = stack.enter_context(open_file(path if plain else packed))
            if not plain:
                file = cast(BinaryIO, stack.enter_context(gzip.GzipFile(fileobj=file)))
            header = file.read(start)
            if len(header) < start or header[:4] != bytes((0, 0, 8, dimensions)):
                raise UserError(f"data.root: {path} is not an IDX file of {dimensions}-D bytes")
            shape = tuple(int(size) for size in np.frombuffer(header, ">u4", dimensions, 4))
            size = math.prod(shape)
            refuse_beyond_memory(f"data.root: {path}", size)
            # One more than the header says, and never all that a packed file may grow to.
            content = file.read(size + 1)
    except FileNotFoundError:
        raise UserError(
            f"data.root: no file {path} (nor {packed.name}); nothing is downloaded, but"
            f" torchvision.datasets.{path.parent.parent.name}(data.root, download=True) does"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"data.root: cannot read {path}: {error}") from None
    if len(content) != size:
        held = len(content) if len(content) < size else f"more than {size}"
        raise UserError(f"data.root: {path} holds {held} values, its header says {size}")
    return np.frombuffer(content, np.uint8).reshape(shape).copy()
