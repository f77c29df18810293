"""CIFAR in both packings, and a pickle that would run code."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import pickletools
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from largebatch._errors import UserError
from largebatch.data import DataConfig, build_source
from largebatch.data.memory import ArraySource
from largebatch.data.source import Split
from largebatch.data.unpickle import read_pickle

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
    content = read_pickle(io.BytesIO(stream))
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


def reduced(function: str, arguments: bytes) -> bytes:
    module, name = function.rsplit(".", 1)
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n" + arguments + b"R"


# dtype("O8", False, True), whose state clears the flags that say that it holds pointers
POINTERS = reduced("numpy.dtype", b"(S'O8'\nI00\nI01\nt") + b"(I3\nS'|'\nNNNI-1\nI-1\nI0\ntb"
# The bytes b"AAAAAAAA" as a pointer to what is then compared with "latin1", in both ways
BY_BUFFER = reduced("numpy.ndarray", b"((I1\nt" + POINTERS + b"S'AAAAAAAA'\nt")
BY_STATE = (
    reduced("numpy.core.multiarray._reconstruct", b"(cnumpy\nndarray\n(I0\ntS'b'\nt")
    + b"(I1\n(I1\nt" + POINTERS + b"I00\nS'AAAAAAAA'\ntb"
)  # fmt: skip


@pytest.mark.parametrize("array", [BY_BUFFER, BY_STATE], ids=["buffer", "state"])
def test_a_pickle_that_makes_pointers_of_bytes_ends_in_one_line(
    tmp_path: Path, array: bytes
) -> None:
    write_cifar10(tmp_path, binary=False)
    # Both as what is encoded and as its encoding.
    attack = b"c_codecs\nencode\n(Vx\n" + array + b"tR."
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(attack)
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def read() -> None:
        try:
            build(tmp_path, "train")
        except UserError as error:
            sender.send(str(error))

    process = multiprocessing.get_context("fork").Process(target=read)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert receiver.poll()
    assert "data_batch_1 is not a CIFAR batch" in receiver.recv()


def array_with(
    kind: bytes = b"u1", content: bytes = b"S'abc'\n", shape: bytes = b"(I3\nt"
) -> bytes:
    """A pickle of {b"data": an array, b"labels": [0]}, with parts of the array replaced."""
    array = (
        reduced("numpy.core.multiarray._reconstruct", b"(cnumpy\nndarray\n(I0\ntS'b'\nt")
        + b"(I1\n" + shape
        + reduced("numpy.dtype", b"(S'" + kind + b"'\nI0\nI1\nt")
        + b"(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\n" + content + b"tb"
    )  # fmt: skip
    return b"(S'data'\n" + array + b"S'labels'\n(I0\nld."


def test_arrays_are_read_by_value_or_refused() -> None:
    assert read_pickle(io.BytesIO(array_with()))[b"data"].tolist() == [97, 98, 99]
    four = read_pickle(io.BytesIO(array_with(b"i4", b"S'\\x01\\x00\\x00\\x00'\n", b"(I1\nt")))
    assert four[b"data"].tolist() == [1]
    for attack in (
        array_with(kind=b"O8"),
        array_with(kind=b"V3"),
        array_with(kind=b"f4"),
        array_with(kind=b"(1000)u1"),
        array_with(shape=b"(I-1\nI-3\nt"),
        array_with(shape=b"(I4\nt"),
        array_with(shape=b"(I2305843009213693952\nI8\nt"),
        array_with(content=b"(lp0\n"),
        array_with(content=b"N"),
    ):
        with pytest.raises(pickle.UnpicklingError, match="not an array of integers"):
            read_pickle(io.BytesIO(attack))


@pytest.mark.parametrize(
    "labels",
    [None, [[0] * COUNT], [None] * COUNT, ["0"] * COUNT, [0.5] * COUNT, [2**80] * COUNT, 3, {},
     np.zeros((COUNT, 1), np.int64), [True] * COUNT],
    ids=str,
)  # fmt: skip
def test_labels_of_another_shape_or_type_are_one_line(tmp_path: Path, labels: object) -> None:
    write_cifar10(tmp_path, binary=False)
    content = {b"data": records(0, 10)[0], b"labels": labels}
    path = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(UserError, match=r"data_batch_2 is not a CIFAR batch: .*"):
        build(tmp_path, "train")


def test_a_pickle_takes_no_more_memory_than_its_file(tmp_path: Path) -> None:
    """A memo at place 2^31, a promise of 2^40 bytes, lists of lists that double at each level."""
    write_cifar10(tmp_path, binary=False)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    doubling = b"(S'data'\nNS'labels'\n(I0\nl" + b"".join(
        b"p%d\n0(%s" % (level, b"g%d\n" % level * 10) + b"l" for level in range(30)
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for attack in (
        b"\x80\x02}r\xff\xff\xff\x7f.",
        b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"x.",
        b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b"x.",
        doubling + b"d.",
    ):
        path.write_bytes(attack)
        with pytest.raises(UserError, match=r"data_batch_2 is not a CIFAR batch"):
            build(tmp_path, "train")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"data_batch_2: not a regular file"):
        build(tmp_path, "train")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10
