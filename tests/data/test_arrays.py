"""Array files: layouts, statistics, and each mistake named in one line."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from largebatch._errors import UserError
from largebatch.data import DataConfig, build_source
from largebatch.data.source import ArraySource, Split

Write = Callable[..., Path]


def build(path: Path, split: Split = "train", **keys: object) -> ArraySource:
    classes = keys.pop("num_classes", None)
    config = DataConfig(name="arrays", root=str(path), **keys)  # type: ignore[arg-type]
    source = build_source(config, split, classes)  # type: ignore[arg-type]
    assert isinstance(source, ArraySource)
    return source


def test_reads_bytes_pixels_last(npz: Write) -> None:
    path = npz()
    train, val = build(path), build(path, "val")
    assert (len(train), len(val)) == (40, 10)
    assert train.num_classes == val.num_classes == 4
    assert train.image_shape == (3, 16, 16)
    stored = np.load(path)["x_train"]
    assert np.array_equal(train.images.numpy(), stored.transpose(0, 3, 1, 2))
    # Both splits are normalised by the training images.
    assert train.mean == val.mean == pytest.approx(stored.mean((0, 1, 2)) / 255)
    assert train.std == val.std == pytest.approx(stored.std((0, 1, 2)) / 255)


def test_channels_may_come_first_or_not_at_all(npz: Write) -> None:
    rng = np.random.default_rng(1)
    first = rng.normal(size=(40, 3, 8, 9))
    source = build(npz(x_train=first, x_test=first[:10]))
    assert source.image_shape == (3, 8, 9)
    assert np.array_equal(source.images.numpy(), first.astype(np.float32))
    grey = rng.integers(0, 256, (40, 8, 9), dtype=np.uint8)
    assert build(npz(x_train=grey, x_test=grey[:10])).image_shape == (1, 8, 9)


def test_features_are_normalised_one_by_one(npz: Write) -> None:
    features = np.random.default_rng(2).normal(3.0, [1.0, 10.0, 0.0, 2.0, 5.0], size=(40, 5))
    source = build(npz(x_train=features, x_test=features[:10]))
    assert source.image_shape == (5, 1, 1)
    assert source.mean == pytest.approx(features.mean(0))
    # A constant feature has no scale of its own.
    assert source.std == pytest.approx([*features.std(0)[:2], 1.0, *features.std(0)[3:]])


def test_limit_keeps_the_first_training_samples(npz: Write) -> None:
    path = npz()
    assert np.array_equal(build(path, limit=7).labels.numpy(), np.arange(7) % 4)
    assert len(build(path, "val", limit=7)) == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_train": np.where(np.arange(40) == 17, -1, 0)}, r"y_train\[17\]=-1 is out of range"),
        ({"y_test": np.where(np.arange(10) == 3, 9, 0)}, r"y_test\[3\]=9 .* labels are 0 to 3"),
        ({"y_train": np.arange(39)}, "y_train has 39 labels for 40 images"),
        ({"y_train": np.zeros(40)}, "y_train is float64"),
        ({"x_train": np.zeros((40, 16, 16, 3), dtype=np.int32)}, "x_train is int32"),
        ({"x_train": np.zeros((40, 5, 6, 7), dtype=np.uint8)}, "cannot tell NHWC from NCHW"),
        ({"x_train": np.full((40, 16, 16, 3), np.nan)}, "x_train has values that are not finite"),
        ({"x_test": np.zeros((10, 8, 8, 3), dtype=np.uint8)}, "x_test are .3, 8, 8., of x_train"),
        ({"x_test": None}, "no array 'x_test'; it holds x_train, y_train, y_test"),
    ],
)
def test_mistakes_name_array_index_and_value(
    npz: Write, changes: dict[str, object], message: str
) -> None:
    path = npz(**changes)
    with pytest.raises(UserError, match=message) as caught:
        build(path, "val")
    assert "data.root" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_are_checked_against_the_models_classes(npz: Write) -> None:
    path = npz()
    assert build(path, num_classes=6).num_classes == 6
    with pytest.raises(UserError, match=r"y_train\[3\]=3 is out of range; labels are 0 to 2"):
        build(path, num_classes=3)


def test_pickled_arrays_are_refused(npz: Write, tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (marker,))

    path = npz(y_train=np.array([Attack()] * 40, dtype=object))
    with pytest.raises(UserError, match=r"cannot be read as .npz"):
        build(path)
    path.write_bytes(pickle.dumps(Attack()))
    with pytest.raises(UserError, match=r"cannot be read as .npz"):
        build(path)
    assert not marker.exists()


def test_absent_and_damaged_files_are_named(npz: Write, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent.npz.*No such file"):
        build(tmp_path / "absent.npz")
    with pytest.raises(UserError, match=r"data.root is not set"):
        build_source(DataConfig(name="arrays"), "train")
    path = npz()
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cannot be read as .npz"):
        build(path)
