"""CIFAR-10 and CIFAR-100, read from the python or binary files without unpickling code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from largebatch.data.unpickle import read_pickle

_PIXELS = 3 * 32 * 32
_SOURCE = "Krizhevsky 2009, Learning multiple layers of features from tiny images"


@dataclass(frozen=True)
class _Layout:
    """Where a CIFAR set lies and how its records look, in both of its official packings."""

    python_folder: str
    python_files: dict[str, tuple[str, ...]]
    label_key: bytes
    binary_folder: str
    binary_files: dict[str, tuple[str, ...]]
    label_bytes: int
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_CIFAR10 = _Layout(
    "cifar-10-batches-py",
    {"train": _BATCHES, "val": ("test_batch",)},
    b"labels",
    "cifar-10-batches-bin",
    {"train": tuple(f"{name}.bin" for name in _BATCHES), "val": ("test_batch.bin",)},
    label_bytes=1,
    num_classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2023, 0.1994, 0.2010),
)
_CIFAR100 = _Layout(
    "cifar-100-python",
    {"train": ("train",), "val": ("test",)},
    b"fine_labels",
    "cifar-100-binary",
    {"train": ("train.bin",), "val": ("test.bin",)},
    # A coarse label precedes the fine one.
    label_bytes=2,
    num_classes=100,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)


@datasets.register("cifar10", "32x32 photographs, 50,000 + 10,000, 10 classes", _SOURCE)
def cifar10(config: DataConfig, split: Split, num_classes: int | None = None) -> ArraySource:
    """Build CIFAR-10 from ``data.root/cifar-10-batches-py`` or ``cifar-10-batches-bin``."""
    return _cifar(config, split, _CIFAR10)


@datasets.register("cifar100", "32x32 photographs, 50,000 + 10,000, 100 classes", _SOURCE)
def cifar100(config: DataConfig, split: Split, num_classes: int | None = None) -> ArraySource:
    """Build CIFAR-100 from ``data.root/cifar-100-python`` or ``cifar-100-binary``."""
    return _cifar(config, split, _CIFAR100)


def _cifar(config: DataConfig, split: Split, layout: _Layout) -> ArraySource:
    root = Path(
        required_root(
            config, f"the folder that holds {layout.python_folder} or {layout.binary_folder}"
        )
    )
    if (root / layout.python_folder).is_dir():
        folder, files = root / layout.python_folder, layout.python_files[split]
        parts = [_read_python(folder / name, layout) for name in files]
    elif (root / layout.binary_folder).is_dir():
        folder, files = root / layout.binary_folder, layout.binary_files[split]
        parts = [_read_binary(folder / name, layout) for name in files]
    else:
        raise UserError(
            f"data.root={str(root)!r}: no folder {layout.python_folder} or "
            f"{layout.binary_folder} in it; nothing is downloaded, but "
            f"torchvision.datasets.CIFAR{layout.num_classes}({str(root)!r}, download=True) does"
        )
    images = np.concatenate([part[0] for part in parts])
    labels = np.concatenate([part[1] for part in parts])
    chosen = limited(labels, config, split)
    return ArraySource(
        torch.from_numpy(images[chosen]),
        torch.from_numpy(labels[chosen]),
        num_classes=layout.num_classes,
        mean=layout.mean,
        std=layout.std,
        crop_and_flip=True,
        image_size=config.image_size,
    )


def _read_python(path: Path, layout: _Layout) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        with open_file(path) as file:
            content = read_pickle(file)
        data, labels = content[b"data"], _integers(content[layout.label_key])
    except OSError as error:
        raise UserError(f"data.root: cannot read {path}: {error.strerror}") from None
    except Exception as error:  # a damaged pickle fails in as many ways as there are opcodes
        raise UserError(f"data.root: {path} is not a CIFAR batch: {error!r}") from None
    if not (
        isinstance(data, np.ndarray)
        and data.dtype == np.uint8
        and data.shape == (len(labels), _PIXELS)
    ):
        raise UserError(f"data.root: {path} is not a CIFAR batch: no uint8 data of (n, {_PIXELS})")
    return _checked(path, data, labels, layout)


def _integers(labels: Any) -> NDArray[np.int64]:
    """Return the labels of a batch, a flat list or array of integers, as int64 (n,)."""
    if isinstance(labels, np.ndarray) and labels.ndim == 1:
        return labels.astype(np.int64)
    if isinstance(labels, (list, tuple)) and all(type(label) is int for label in labels):
        return np.array(labels, dtype=np.int64)
    raise ValueError("labels are not a list of integers")


def _read_binary(path: Path, layout: _Layout) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        with open_file(path) as file:
            size = path.stat().st_size
            refuse_beyond_memory(f"data.root: {path}", size)
            content = np.frombuffer(file.read(size), np.uint8)
    except OSError as error:
        raise UserError(f"data.root: cannot read {path}: {error.strerror}") from None
    record = layout.label_bytes + _PIXELS
    if content.size == 0 or content.size % record:
        raise UserError(
            f"data.root: {path} has {content.size} bytes, not a multiple of the record, {record}"
        )
    records = content.reshape(-1, record)
    labels = records[:, layout.label_bytes - 1].astype(np.int64)
    return _checked(path, records[:, layout.label_bytes :], labels, layout)


def _checked(
    path: Path, data: NDArray[np.uint8], labels: NDArray[np.int64], layout: _Layout
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    wrong = np.flatnonzero((labels < 0) | (labels >= layout.num_classes))
    if wrong.size:
        raise UserError(
            f"data.root: {path}: label {labels[wrong[0]]} of image {wrong[0]} is out of range; "
            f"labels are 0 to {layout.num_classes - 1}"
        )
    return np.ascontiguousarray(data).reshape(-1, 3, 32, 32), labels
