"""Array files: layouts, statistics, and each mistake named in one line."""

from __future__ import annotations

import io
import pickle
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from largebatch._errors import UserError
from largebatch.data import DataConfig, build_source
from largebatch.data.memory import ArraySource
from largebatch.data.source import Split

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


def test_limit_takes_every_classs_share_of_training_samples(npz: Write) -> None:
    path = npz(y_train=np.sort(np.arange(40) % 4))
    assert np.bincount(build(path, limit=8).labels).tolist() == [2, 2, 2, 2]
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
        ({"x_train": np.full((40, 4), 1e300)}, "x_train has .* not finite in float32"),
        ({"x_test": np.where(np.eye(10, 4) > 0, -4e38, 0)}, "x_test has .* not finite in float32"),
        (
            {"y_train": np.where(np.arange(40) == 9, 2**31, 0)},
            r"y_train\[9\]=2147483648 would make",
        ),
        ({"y_train": np.arange(1, 41)}, r"y_train\[39\]=40 would make 41 classes of 40 images"),
        ({"y_train": np.full(40, 2**63, np.uint64)}, r"y_train\[0\]=9223372036854775808 is out of"),
        ({"y_train": np.full(40, 2.5)}, "y_train is float64"),
        ({"y_train": np.eye(40)}, r"y_train is float64 of shape \(40, 40\)"),
        ({"y_train": np.array(["cat"] * 40)}, "y_train is <U3"),
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


def rewritten(path: Path, name: str, member: bytes) -> None:
    """Replace one array of an .npz by bytes."""
    with zipfile.ZipFile(path) as file:
        others = {held: file.read(held) for held in file.namelist() if held != f"{name}.npy"}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for held, content in others.items():
            file.writestr(held, content)
        file.writestr(f"{name}.npy", member)


def header(shape: tuple[int, ...], kind: str = "|u1") -> bytes:
    buffer = io.BytesIO()
    described = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()


def test_an_npz_is_not_inflated_beyond_its_header(npz: Write) -> None:
    path = npz()
    rewritten(path, "x_test", header((10, 16, 16, 3)) + bytes(100 << 20))
    assert path.stat().st_size < 1 << 20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"x_test holds 104857600 bytes, its header says 7680"):
        build(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (header((9 << 40, 1)), r"x_train holds 0 bytes, its header says 9895604649984"),
        (header((-2, -20, 16, 3)) + bytes(1920), r"cannot be read as .npz"),
        (header((40, 16, 16, 3), "|O") + bytes(8), r"x_train holds Python objects"),
        (header((40, 4), "<U9"), r"x_train holds 0 bytes"),
        (b"\x93NUMPY\x09\x00" + bytes(90), r"x_train has format \(9, 0\)"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': [[[[[[[", r"cannot be read as .npz"),
        (b"", r"cannot be read as .npz"),
    ],
    ids=["9 TiB", "negative", "objects", "text", "format", "header", "empty"],
)
def test_headers_that_lie_are_one_line(npz: Write, member: bytes, message: str) -> None:
    path = npz()
    rewritten(path, "x_train", member)
    with pytest.raises(UserError, match=message) as caught:
        build(path)
    assert "\n" not in str(caught.value)


def test_more_than_the_memory_is_refused_before_it_is_read(
    npz: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    from largebatch.data import files

    monkeypatch.setattr(files, "memory_gib", lambda: 1e-5)
    with pytest.raises(UserError, match=r"x_train takes .* more than this machine's"):
        build(npz())


@pytest.mark.parametrize(("at", "value"), [(8, 99), (6, 1)], ids=["method 99", "encrypted"])
def test_archives_of_other_kinds_are_one_line(npz: Write, at: int, value: int) -> None:
    path = npz()
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")  # the first entry of the directory, and its own header
    content[entry + at + 2] = content[at] = value
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read as .npz: .*"):
        build(path)


def test_few_images_of_many_classes_are_no_mistake_if_the_model_says_so(npz: Write) -> None:
    path = npz(y_train=np.arange(40) * 10, y_test=np.arange(10))
    assert build(path, num_classes=1000).num_classes == 1000
