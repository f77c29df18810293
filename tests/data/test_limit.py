"""data.limit: every class's share, the same on any machine, of every source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from largebatch.data import DataConfig, build_source
from largebatch.data.limit import limited
from largebatch.data.memory import ArraySource


def labels_of(config: DataConfig) -> NDArray[np.int64]:
    source = build_source(config, "train")
    if isinstance(source, ArraySource):
        assert len(source.images) == len(source.labels)
        return source.labels.numpy()
    return np.array([source.load(i, 0, 0, 8, False)[1] for i in range(len(source))])  # type: ignore


def write_imagefolder(root: Path) -> DataConfig:
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            place = root / split / name
            place.mkdir(parents=True)
            for number in range(40 if split == "train" else 1):
                Image.new("L", (8, 8), number).save(place / f"{number:02d}.png")
    return DataConfig(name="imagefolder", root=str(root), image_size=8)


def write_mnist(root: Path) -> DataConfig:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    labels = np.sort(np.arange(80) % 2).astype(np.uint8)
    for name, array in (
        ("train-images-idx3-ubyte", np.zeros((80, 28, 28), np.uint8)),
        ("train-labels-idx1-ubyte", labels),
    ):
        header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
        (raw / name).write_bytes(header + array.tobytes())
    return DataConfig(name="mnist", root=str(root))


def write_cifar(root: Path) -> DataConfig:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    for number in range(1, 6):
        rows = np.zeros((16, 3073), np.uint8)
        rows[:, 0] = number > 2.5
        if number == 3:
            rows[:8, 0] = 0
        (folder / f"data_batch_{number}.bin").write_bytes(rows.tobytes())
    return DataConfig(name="cifar10", root=str(root))


def write_arrays(root: Path) -> DataConfig:
    path = root / "set.npz"
    images = np.zeros((80, 4), np.float32)
    labels = np.sort(np.arange(80) % 2)
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    return DataConfig(name="arrays", root=str(path))


class Told(list[Any]):
    """A data set that tells its labels, as torchvision's do."""

    num_classes = 2

    def __init__(self) -> None:
        super().__init__((torch.zeros(1, 8, 8), number // 40) for number in range(80))
        self.targets = [number // 40 for number in range(80)]


class Untold(Told):
    def __init__(self) -> None:
        super().__init__()
        del self.targets


def told(split: str) -> Told:
    return Told()


def untold(split: str) -> Untold:
    return Untold()


def custom(name: str) -> Callable[[Path], DataConfig]:
    return lambda root: DataConfig(name=f"{__name__}:{name}")


@pytest.mark.parametrize(
    "write", [write_imagefolder, write_mnist, write_cifar, write_arrays, custom("told")]
)
def test_every_source_gives_every_classs_share(
    tmp_path: Path, write: Callable[[Path], DataConfig]
) -> None:
    config = write(tmp_path)
    whole = labels_of(config)
    assert np.bincount(whole).tolist() == [40, 40]
    for limit, counts in ((40, [20, 20]), (2, [1, 1]), (20, [10, 10]), (80, [40, 40])):
        config.limit = limit
        assert np.bincount(labels_of(config)).tolist() == counts
    config.limit = 1000
    assert np.array_equal(labels_of(config), whole)


def test_digits_are_shared_out_and_whole_without_a_limit() -> None:
    whole = build_source(DataConfig(), "train")
    part = build_source(DataConfig(limit=290), "train")
    assert isinstance(whole, ArraySource)
    assert isinstance(part, ArraySource)
    shares = np.bincount(whole.labels) * 290 / 1442
    assert (np.abs(np.bincount(part.labels) - shares) < 1).all()
    rows = {image.tobytes() for image in whole.images.numpy()}
    assert all(image.tobytes() in rows for image in part.images.numpy())
    assert len(build_source(DataConfig(limit=290), "val")) == 355


def test_a_data_set_that_does_not_tell_its_labels_gives_any_samples() -> None:
    counts = np.bincount(labels_of(DataConfig(name=f"{__name__}:untold", limit=40)), minlength=2)
    assert counts.sum() == 40
    assert counts.min() > 8


def test_the_choice_is_fixed_nested_and_fair() -> None:
    random = np.random.default_rng(0)
    labels = random.choice(7, 3000, p=[0.5, 0.2, 0.15, 0.1, 0.03, 0.015, 0.005])
    before: set[int] = set()
    for limit in (1, 7, 100, 500, 2999, 3000):
        chosen = limited(labels, DataConfig(limit=limit), "train")
        assert len(chosen) == limit
        assert (np.diff(chosen) > 0).all()
        assert before <= set(chosen.tolist())
        before = set(chosen.tolist())
        shares = np.bincount(labels, minlength=7) * limit / 3000
        assert (np.abs(np.bincount(labels[chosen], minlength=7) - shares) < 1).all()
    # What the classes are called does not matter, and the choice never changes unseen.
    chosen = limited(labels, DataConfig(limit=10), "train")
    assert np.array_equal(limited(labels + 5, DataConfig(limit=10), "train"), chosen)
    assert limited(np.arange(100) % 4, DataConfig(limit=4), "train").tolist() == FIRST


FIRST = [13, 14, 24, 63]
