"""Digits, MNIST's files, noise, and what the registry says."""

from __future__ import annotations

import gzip
import os
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from largebatch._errors import UserError
from largebatch.data import Batch, DataConfig, Request, build_source, datasets
from largebatch.data.memory import ArraySource

Read = Callable[..., list[Batch]]
Ask = Callable[..., Request]
NAMES = [
    "digits",
    "mnist",
    "fashion_mnist",
    "cifar10",
    "cifar100",
    "arrays",
    "imagefolder",
    "synthetic",
    "quadratic",
    "text",
    "stdlib",
]


def test_every_promised_name_is_registered() -> None:
    assert sorted(datasets.names()) == sorted(NAMES)
    assert all(entry.summary for entry in datasets)
    with pytest.raises(UserError, match=r"data.name='cifar': choose from .*did you mean 'cifar10'"):
        build_source(DataConfig(name="cifar"), "train")


def test_digits_split_is_fixed_stratified_and_disjoint() -> None:
    train = build_source(DataConfig(), "train")
    val = build_source(DataConfig(), "val")
    assert isinstance(train, ArraySource)
    assert isinstance(val, ArraySource)
    assert (len(train), len(val)) == (1442, 355)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    whole = np.concatenate([bunch.images.reshape(-1, 64), bunch.target[:, None]], axis=1)
    parts = torch.cat([train.images, val.images]).reshape(-1, 64).numpy()
    labels = torch.cat([train.labels, val.labels]).numpy()
    joined = np.concatenate([parts, labels[:, None]], axis=1)
    order = np.lexsort(whole.T), np.lexsort(joined.T)
    assert np.array_equal(whole[order[0]], joined[order[1]])
    totals = np.bincount(bunch.target)
    assert np.array_equal(np.bincount(val.labels), totals // 5)
    # The first of each split, so that the split never changes unseen.
    assert val.labels[:8].tolist() == FIRST_HELD_OUT


FIRST_HELD_OUT = [5, 8, 4, 8, 9, 0, 7, 3]


def test_digits_inputs_have_mean_0_and_deviation_1(read: Read, ask: Ask) -> None:
    source = build_source(DataConfig(), "train")
    (batch,) = read(source, DataConfig(), [ask(range(len(source)))])
    assert abs(batch.inputs.mean().item()) < 0.01
    assert abs(batch.inputs.std().item() - 1) < 0.01


def write_idx(path: Path, array: np.ndarray, packed: bool = False) -> None:
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    if packed:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(header + array.tobytes()))
    else:
        path.write_bytes(header + array.tobytes())


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")]
)
def test_idx_files_are_read_plain_and_packed(tmp_path: Path, name: str, folder: str) -> None:
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (9, 28, 28), dtype=np.uint8)
    write_idx(raw / "train-images-idx3-ubyte", images)
    write_idx(raw / "train-labels-idx1-ubyte", np.arange(9, dtype=np.uint8), packed=True)
    config = DataConfig(name=name, root=str(tmp_path))
    source = build_source(config, "train")
    assert isinstance(source, ArraySource)
    assert np.array_equal(source.images[:, 0].numpy(), images)
    assert source.labels.tolist() == list(range(9))
    with pytest.raises(UserError, match=r"no file .*t10k-images-idx3-ubyte"):
        build_source(config, "val")
    write_idx(raw / "train-labels-idx1-ubyte", np.arange(8, dtype=np.uint8))
    with pytest.raises(UserError, match=r"9 train images but 8 labels"):
        build_source(config, "train")
    (raw / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x09\1\2\3")
    with pytest.raises(UserError, match=r"holds 3 values, its header says 9"):
        build_source(config, "train")
    (raw / "train-labels-idx1-ubyte").write_bytes(b"not idx at all")
    with pytest.raises(UserError, match=r"is not an IDX file"):
        build_source(config, "train")


@pytest.fixture
def mnist_files(tmp_path: Path) -> Path:
    """Nine training images of MNIST; returns the folder of the raw files."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    write_idx(raw / "train-images-idx3-ubyte", np.zeros((9, 28, 28), np.uint8))
    write_idx(raw / "train-labels-idx1-ubyte", np.arange(9, dtype=np.uint8))
    return raw


def mnist_error(raw: Path) -> str:
    with pytest.raises(UserError) as caught:
        build_source(DataConfig(name="mnist", root=str(raw.parent.parent)), "train")
    assert "data.root" in str(caught.value)
    return str(caught.value)


def test_an_idx_label_out_of_range_is_named(mnist_files: Path) -> None:
    labels = np.arange(9, dtype=np.uint8)
    labels[4] = 200
    write_idx(mnist_files / "train-labels-idx1-ubyte", labels)
    assert "label 200 of train image 4 is out of range; labels are 0 to 9" in mnist_error(
        mnist_files
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda packed: packed[:10] + b"\xff" * 20 + packed[30:], "cannot read"),
        (lambda packed: packed[:-20], "cannot read"),
        (lambda packed: b"not gzip", "cannot read"),
        (lambda packed: packed + packed, "holds more than 7056 values"),
        (lambda packed: gzip.compress(gzip.decompress(packed)[:-1]), "holds 7055 values"),
    ],
    ids=["corrupt", "cut", "other", "twice", "short"],
)
def test_a_damaged_gz_is_one_line(
    mnist_files: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    plain = mnist_files / "train-images-idx3-ubyte"
    rng = np.random.default_rng(0)
    packed = gzip.compress(plain.read_bytes()[:16] + rng.bytes(7056))
    plain.with_name(plain.name + ".gz").write_bytes(damage(packed))
    plain.unlink()
    assert message in mnist_error(mnist_files)


def test_a_gz_is_not_inflated_beyond_its_header(mnist_files: Path) -> None:
    plain = mnist_files / "train-images-idx3-ubyte"
    header = plain.read_bytes()[:16]
    plain.unlink()
    with gzip.open(plain.with_name(plain.name + ".gz"), "wb", compresslevel=1) as file:
        file.write(header)
        for _ in range(150):
            file.write(bytes(1 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "holds more than 7056 values, its header says 7056" in mnist_error(mnist_files)
    huge = bytes((0, 0, 8, 3)) + np.array([1 << 31] * 3, ">u4").tobytes()
    plain.write_bytes(huge)
    assert "more than this machine's" in mnist_error(mnist_files)
    plain.unlink()
    os.mkfifo(plain)
    assert "not a regular file" in mnist_error(mnist_files)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10


def test_a_missing_root_says_what_was_expected() -> None:
    with pytest.raises(UserError, match=r"data.root is not set: .*MNIST/raw/train-images"):
        build_source(DataConfig(name="mnist"), "train")


def test_noise_is_the_same_for_the_same_index(read: Read, ask: Ask) -> None:
    config = DataConfig(name="synthetic", image_size=8, limit=1000)
    source = build_source(config, "train", 7)
    assert (len(source), source.num_classes, source.image_shape) == (1000, 7, (3, 8, 8))
    assert len(build_source(config, "val", 7)) == 40
    first, second = read(source, config, [ask([5, 900]), ask([900, 77, 5])])
    assert torch.equal(first.inputs[0], second.inputs[2])
    assert torch.equal(first.inputs[1], second.inputs[0])
    assert not torch.equal(second.inputs[0], second.inputs[1])
    assert first.targets[1] == second.targets[0]
    (whole,) = read(source, config, [ask(range(128))])
    assert abs(whole.inputs.mean().item()) < 0.05
    assert abs(whole.inputs.std().item() - 1) < 0.05
    assert set(whole.targets.tolist()) == set(range(7))


def test_the_model_may_have_more_classes_than_the_data_but_not_fewer() -> None:
    assert build_source(DataConfig(), "train", 12).num_classes == 12
    with pytest.raises(UserError, match=r"model.num_classes=9: data.name='digits' has 10 classes"):
        build_source(DataConfig(), "train", 9)


@pytest.mark.parametrize(
    ("key", "value"),
    [("skip_corrupt", -1), ("mixup", -0.1), ("workers", -1), ("image_size", 0), ("limit", 0)],
)
def test_values_out_of_range_name_their_key(key: str, value: float) -> None:
    with pytest.raises(UserError, match=f"data.{key}={value}"):
        DataConfig(**{key: value}).check()  # type: ignore[arg-type]
