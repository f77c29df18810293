"""``arrays``: any data set in one .npz file with x_train, y_train, x_test and y_test."""

from __future__ import annotations

import math
import os
import zipfile
from functools import lru_cache
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

_NAMES = ("x_train", "y_train", "x_test", "y_test")


@datasets.register("arrays", "x_train, y_train, x_test, y_test of an .npz file")
def arrays(config: DataConfig, split: Split, num_classes: int | None = None) -> ArraySource:
    """Build the source from the .npz file that ``data.root`` names.

    Images are uint8 or float, (n, height, width), NHWC or NCHW with 1, 3 or 4 channels. Features
    are (n, features) and become images of one pixel with ``features`` channels. Labels are integers
    in [0, classes). Unless ``model.num_classes`` is set, the largest label in y_train gives the
    number of classes, which is at most the number of images. Mean and std per channel are those of
    x_train. The standard augmentation (pad by an eighth, crop, flip) applies to images of 3
    channels and at least 16 pixels a side.
    """
    path = required_root(config, "an .npz file with " + ", ".join(_NAMES))
    loaded = _load(path, _identity(path))
    train = loaded["x_train"]
    images = train if split == "train" else loaded["x_test"]
    if images.shape[1:] != train.shape[1:]:
        raise UserError(
            f"data.root={path!r}: images of x_test are {tuple(images.shape[1:])}, "
            f"of x_train {tuple(train.shape[1:])} (channels, height, width)"
        )
    y_train = _labels(path, "y_train", loaded["y_train"], len(train), num_classes)
    classes = num_classes if num_classes is not None else _count(path, y_train)
    labels = y_train
    if split == "val":
        labels = _labels(path, "y_test", loaded["y_test"], len(images), classes)
    chosen = limited(labels, config, split)
    if len(chosen) < len(labels):
        images, labels = images[chosen], labels[chosen]
    scale = 1 / 255 if train.dtype == np.uint8 else 1.0
    mean, std = _statistics(path, _identity(path), scale)
    height, width = images.shape[2:]
    return ArraySource(
        torch.from_numpy(images),
        torch.from_numpy(labels),
        num_classes=classes,
        mean=mean,
        std=std,
        scale=scale,
        crop_and_flip=images.shape[1] == 3 and min(height, width) >= 16,
        image_size=config.image_size,
    )


def _identity(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(f"data.root={path!r}: {error.strerror}; expected an .npz file") from None
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=1)
def _load(path: str, identity: tuple[int, int]) -> dict[str, NDArray[Any]]:
    """Read the four arrays, images as (n, channels, height, width), once for both splits.

    The cache is keyed to the file's time and size.
    """
    try:
        with open_file(path) as opened, zipfile.ZipFile(opened) as file:
            held = [name.removesuffix(".npy") for name in file.namelist()]
            missing = [name for name in _NAMES if name not in held]
            if missing:
                raise UserError(
                    f"data.root={path!r}: no array {missing[0]!r}; it holds "
                    + (", ".join(held) or "none")
                )
            loaded = {name: _read(path, file, name) for name in _NAMES}
    except UserError:
        raise
    except Exception as error:  # an archive fails in as many ways as it has parts
        reason = str(error) or type(error).__name__
        raise UserError(f"data.root={path!r}: cannot be read as .npz: {reason}") from None
    for name in ("x_train", "x_test"):
        loaded[name] = _images(path, name, loaded[name])
    return loaded


def _read(path: str, file: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """Read one array, after its header has said how much there is to read."""
    member = file.getinfo(f"{name}.npy")
    with file.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{name} has format {version}; expected numbers in format 1 or 2")
        read_header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read_header(stream)
        if dtype.hasobject:
            raise ValueError(f"{name} holds Python objects; expected numbers")
        size, held = math.prod(shape) * dtype.itemsize, member.file_size - stream.tell()
    if size != held:
        raise ValueError(f"{name} holds {held} bytes, its header says {size}")
    refuse_beyond_memory(f"data.root={path!r}: {name}", size)
    with file.open(member) as stream:
        array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    return array


def _images(path: str, name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Return images as uint8 or float32 (n, channels, height, width)."""
    where = f"data.root={path!r}: {name}"
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise UserError(f"{where} is {array.dtype}; expected uint8 or float")
    if array.ndim not in (2, 3, 4) or array.size == 0:
        raise UserError(f"{where} has shape {array.shape}; expected 2 to 4 non-empty dimensions")
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            narrow = array.astype(np.float32, copy=False)
        if not np.isfinite(narrow).all():
            beyond = " in float32, whose largest is 3.4e38" if np.isfinite(array).all() else ""
            raise UserError(f"{where} has values that are not finite{beyond}")
        array = narrow
    if array.ndim == 2:
        return np.ascontiguousarray(array)[:, :, None, None]
    if array.ndim == 3:
        return np.ascontiguousarray(array)[:, None]
    first, last = array.shape[1] in (1, 3, 4), array.shape[3] in (1, 3, 4)
    if first == last:
        raise UserError(
            f"{where} has shape {array.shape}: cannot tell NHWC from NCHW; exactly one of the "
            "second and last sizes must be 1, 3 or 4 (channels)"
        )
    return np.ascontiguousarray(array if first else array.transpose(0, 3, 1, 2))


def _labels(
    path: str, name: str, array: NDArray[Any], count: int, num_classes: int | None
) -> NDArray[np.int64]:
    where = f"data.root={path!r}: {name}"
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise UserError(
            f"{where} is {array.dtype} of shape {array.shape}; expected integers of shape (n,)"
        )
    if len(array) != count:
        raise UserError(f"{where} has {len(array)} labels for {count} images")
    high = np.iinfo(np.int64).max if num_classes is None else num_classes
    wrong = np.flatnonzero((array < 0) | (array >= high))
    if wrong.size:
        allowed = "0 or more" if num_classes is None else f"0 to {num_classes - 1}"
        raise UserError(
            f"{where}[{wrong[0]}]={array[wrong[0]]} is out of range; labels are {allowed}"
        )
    return array.astype(np.int64)


def _count(path: str, labels: NDArray[np.int64]) -> int:
    """Return the number of classes that the training labels imply."""
    largest = int(labels.argmax())
    if labels[largest] >= len(labels):
        raise UserError(
            f"data.root={path!r}: y_train[{largest}]={labels[largest]} would make "
            f"{labels[largest] + 1} classes of {len(labels)} images; number the classes from 0 "
            "without gaps, or set model.num_classes"
        )
    return int(labels[largest]) + 1


@lru_cache(maxsize=1)
def _statistics(
    path: str, identity: tuple[int, int], scale: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of each channel of x_train in float64, over blocks to spare memory."""
    images = _load(path, identity)["x_train"]
    channels = images.shape[1]
    total, squares = np.zeros(channels), np.zeros(channels)
    # Shifted by the first image's mean, so that the squares do not cancel; in blocks that stay in
    # the cache.
    shift = images[0].astype(np.float64).mean(axis=(1, 2))
    for start in range(0, len(images), 64):
        block = images[start : start + 64] - shift[:, None, None]
        total += block.sum(axis=(0, 2, 3))
        squares += np.einsum("nchw,nchw->c", block, block)
    number = images.size // channels
    mean = total / number
    std = np.sqrt(np.maximum(squares / number - mean**2, 0.0))
    std[std == 0] = 1 / scale
    return tuple(((mean + shift) * scale).tolist()), tuple((std * scale).tolist())
