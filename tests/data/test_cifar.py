"""CIFAR in both packings, and a pickle that would run code."""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from largebatch._errors import UserError
from largebatch.data import DataConfig, build_source
from largebatch.data.cifar import ArrayUnpickler
from largebatch.data.source import ArraySource, Split

COUNT = 12


def records(seed: int, classes: int) -> tuple[NDArray[np.uint8], list[int]]:
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (COUNT, 3072), dtype=np.uint8)
    return data, rng.integers(0, classes, COUNT).tolist()


def write_cifar10(root: Path, binary: bool) -> None:
    folder = root / ("cifar-10-batches-bin" if binary else "cifar-10-batches-py")
    folder.mkdir()
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    for seed, name in enumerate(names):
        data, labels = records(seed, 10)
        if binary:
            rows = np.concatenate([np.array(labels, np.uint8)[:, None], data], axis=1)
            (folder / f"{name}.bin").write_bytes(rows.tobytes())
        else:
            content = {b"data": data, b"labels": labels, b"batch_label": b"batch"}
            (folder / name).write_bytes(pickle.dumps(content, protocol=2))


def build(root: Path, split: Split, name: str = "cifar10") -> ArraySource:
    source = build_source(DataConfig(name=name, root=str(root)), split)
    assert isinstance(source, ArraySource)
    return source


@pytest.mark.parametrize("binary", [False, True])
def test_reads_both_packings(tmp_path: Path, binary: bool) -> None:
    write_cifar10(tmp_path, binary)
    train, val = build(tmp_path, "train"), build(tmp_path, "val")
    assert (len(train), len(val), train.num_classes) == (5 * COUNT, COUNT, 10)
    data, labels = records(2, 10)
    assert np.array_equal(train.images[2 * COUNT : 3 * COUNT].numpy().reshape(COUNT, -1), data)
    assert train.labels[2 * COUNT : 3 * COUNT].tolist() == labels
    assert val.labels.tolist() == records(5, 10)[1]


@pytest.mark.parametrize("binary", [False, True])
def test_reads_fine_labels_of_cifar100(tmp_path: Path, binary: bool) -> None:
    folder = tmp_path / ("cifar-100-binary" if binary else "cifar-100-python")
    folder.mkdir()
    data, labels = records(0, 100)
    coarse = [label // 5 for label in labels]
    for name in ("train", "test"):
        if binary:
            pairs = np.array([coarse, labels], np.uint8).T
            rows = np.concatenate([pairs, data], axis=1)
            (folder / f"{name}.bin").write_bytes(rows.tobytes())
        else:
            content = {b"data": data, b"coarse_labels": coarse, b"fine_labels": labels}
            (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    source = build(tmp_path, "train", "cifar100")
    assert source.num_classes == 100
    assert source.labels.tolist() == labels


def test_reads_a_pickle_of_python_2() -> None:
    """The official files name numpy by its old modules and hold byte strings, in protocol 2."""
    stream = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\n"
        b"q\x04K\x00\x85U\x01b\x87Rq\x05(K\x01K\x01K\x03\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01"
        b"\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x03\x01\xfe\xffq"
        b"\x08tbU\x06labelsq\x09]q\x0aK\x06au."
    )
    pickletools.dis(stream, io.StringIO())
    content = ArrayUnpickler(io.BytesIO(stream)).load()
    assert content[b"labels"] == [6]
    assert content[b"data"].tolist() == [[1, 254, 255]]


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    write_cifar10(tmp_path, binary=False)
    marker = tmp_path / "ran"

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (marker,))

    batch = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    for attack in (
        pickle.dumps({b"data": Attack(), b"labels": [0]}, protocol=2),
        b"cos\nsystem\n(S'touch " + bytes(marker) + b"'\ntR.",
        b"c__builtin__\neval\n(S'1'\ntR.",
        b"cnumpy\nfromfile\n(S'x'\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(I0\ntS'b'\ntR.",
        b"c_codecs\nencode\n(Vx\nVrot13\ntR.",
    ):
        batch.write_bytes(attack)
        with pytest.raises(UserError, match=r"data_batch_3 is not a CIFAR batch: .*Unpickling"):
            build(tmp_path, "train")
    assert not marker.exists()


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder cifar-10-batches-py or cifar-10-batches-bin"):
        build(tmp_path, "train")
    write_cifar10(tmp_path, binary=True)
    batch = tmp_path / "cifar-10-batches-bin" / "test_batch.bin"
    whole = batch.read_bytes()
    batch.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"not a multiple of the record, 3073"):
        build(tmp_path, "val")
    batch.write_bytes(bytes([10]) + whole[1:])
    with pytest.raises(UserError, match=r"label 10 of image 0 is out of range; labels are 0 to 9"):
        build(tmp_path, "val")
    batch.unlink()
    with pytest.raises(UserError, match=r"test_batch\.bin: No such file"):
        build(tmp_path, "val")
