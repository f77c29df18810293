from __future__ import annotations

import errno
import json
import math
import os
import pickle
import resource
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from largebatch._errors import RunFailure, UserError
from largebatch.record import RunDirectory
from largebatch.train import checkpoint

STATE = {
    "position": {"samples": 12, "seconds": 0.1 + 0.2, "last": None, "reached": None},
    "optimizer": {
        "state": {
            0: {"momentum_buffer": torch.randn(3, 4).to(memory_format=torch.preserve_format)}
        },
        "param_groups": [{"params": [0], "betas": (0.9, 0.999), "lr": math.pi, "nesterov": True}],
    },
    "model": {
        "w": torch.randn(2, 3, dtype=torch.float64),
        "n": torch.tensor(7),
        "e": torch.empty(0),
    },
    "half": torch.randn(5).bfloat16(),
    "bounds": [math.inf, -math.inf],
}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_a_state_comes_back_with_its_types_and_bits(tmp_path: Path):
    path = checkpoint.save(tmp_path, 12, STATE, keep=2)
    assert same(checkpoint.load(path), STATE)
    assert checkpoint.newest_valid(tmp_path, print) == str(path)


def test_tensors_of_one_memory_come_back_each(tmp_path: Path):
    base = torch.arange(12.0)
    state = {"a": base[:6], "b": base.view(3, 4).t(), "c": base}
    loaded = checkpoint.load(checkpoint.save(tmp_path, 1, state, keep=1))
    for name in state:
        assert torch.equal(loaded[name], state[name])


def test_old_ones_go_after_a_new_one_is_complete(tmp_path: Path):
    for samples in (10, 20, 30):
        checkpoint.save(tmp_path, samples, STATE, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "samples-000000000020",
        "samples-000000000030",
    ]
    checkpoint.save(tmp_path, 30, {"again": torch.ones(1)}, keep=2)
    assert list(checkpoint.load(tmp_path / "samples-000000000030")) == ["again"]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", [checkpoint.TENSORS, checkpoint.REST, checkpoint.CHECKSUMS])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_one_is_reported_set_aside_and_passed_over(tmp_path: Path, name, damage):
    good = checkpoint.save(tmp_path, 10, STATE, keep=3)
    bad = checkpoint.save(tmp_path, 20, STATE, keep=3)
    content = bytearray((bad / name).read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        (bad / name).write_bytes(content)
    elif damage == "cut":
        (bad / name).write_bytes(content[:-3])
    else:
        (bad / name).unlink()
    said: list[str] = []
    assert checkpoint.newest_valid(tmp_path, said.append) == str(good)
    assert len(said) == 1 and "samples-000000000020" in said[0]
    assert not bad.exists() and len(list(tmp_path.glob("damaged-*"))) == 1
    # A later, smaller save is the newest valid one, and it is kept.
    later = checkpoint.save(tmp_path, 15, STATE, keep=1)
    assert checkpoint.newest_valid(tmp_path, said.append) == str(later)


def test_a_half_written_one_is_no_checkpoint_and_is_swept_up(tmp_path: Path):
    (tmp_path / ".partial-samples-000000000040").mkdir()
    assert checkpoint.newest_valid(tmp_path, print) is None
    checkpoint.save(tmp_path, 50, STATE, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["samples-000000000050"]


def test_nothing_in_it_is_executed(tmp_path: Path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'executed'}",)

    path = checkpoint.save(tmp_path, 10, STATE, keep=1)
    (path / checkpoint.TENSORS).write_bytes(pickle.dumps(Evil()))
    sums = json.loads((path / checkpoint.CHECKSUMS).read_text())
    sums[checkpoint.TENSORS] = checkpoint._sha256(path / checkpoint.TENSORS)
    (path / checkpoint.CHECKSUMS).write_text(json.dumps(sums))
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(path)
    assert not (tmp_path / "executed").exists()


def test_a_full_disk_leaves_the_last_good_one(tmp_path: Path, monkeypatch):
    good = checkpoint.save(tmp_path, 10, STATE, keep=1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_sync", full)
    with pytest.raises(RunFailure, match=r"No space left.*samples-000000000010"):
        checkpoint.save(tmp_path, 20, STATE, keep=1)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == [good.name]
    assert same(checkpoint.load(good), STATE)


def test_the_hash_of_weights_reads_bytes_in_order():
    import hashlib

    a, b = torch.randn(3, 4), torch.tensor([1, 2, 3])
    expected = hashlib.sha256(a.t().contiguous().numpy().tobytes() + b.numpy().tobytes())
    assert checkpoint.weights_sha256({"a": a.t(), "b": b}) == expected.hexdigest()
    assert checkpoint.weights_sha256({"b": b, "a": a.t()}) != expected.hexdigest()


def tamper(path: Path, change) -> Path:
    """Write a checkpoint's state.json as ``change`` returns it, with the right sums."""
    whole = json.loads((path / checkpoint.REST).read_text())
    text = change(whole)
    (path / checkpoint.REST).write_text(text if isinstance(text, str) else json.dumps(text))
    return with_sums(path)


def with_sums(path: Path) -> Path:
    sums = {n: checkpoint._sha256(path / n) for n in (checkpoint.TENSORS, checkpoint.REST)}
    (path / checkpoint.CHECKSUMS).write_text(json.dumps(sums))
    return path


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    "change",
    [
        lambda w: "[" * 200_000,
        lambda w: json.dumps(w).replace('"state"', f'"x": {nested(900)}, "state"'),
        lambda w: json.dumps({**w, "state": 0}).replace(": 0}", f": {nested(900)}}}"),
        lambda w: {**w, "state": None},
        lambda w: {**w, "state": []},
        lambda w: {**w, "state": "text"},
        lambda w: {**w, "state": {"dict": [], "list": []}},
        lambda w: {**w, "state": {"pickle": "x"}},
        lambda w: {**w, "state": {"dict": [["a"]]}},
        lambda w: {**w, "state": {"dict": [[["a"], 1]]}},
        lambda w: {**w, "state": {"dict": 7}},
        lambda w: {**w, "state": {"dict": [["a", {"tensor": "nowhere"}]]}},
        lambda w: {**w, "state": {"dict": [["a", {"tensor": ["model/w"]}]]}},
        lambda w: {**w, "state": {"dict": [["a", {"float": [1]}]]}},
        lambda w: {**w, "format": "one"},
        lambda w: {**w, "format": 0},
        lambda w: [],
        lambda w: None,
    ],
)
def test_right_sums_of_what_is_no_state(tmp_path: Path, change):
    path = tamper(checkpoint.save(tmp_path, 10, STATE, keep=1), change)
    begun = time.monotonic()
    with pytest.raises(checkpoint.DamagedCheckpoint, match="damaged or is none"):
        checkpoint.load(path)
    assert time.monotonic() - begun < 2


def test_sums_that_are_none(tmp_path: Path):
    path = checkpoint.save(tmp_path, 10, STATE, keep=1)
    for text in ("[" * 200_000, "[]", "null", '{"state.json": 1}', "\x00"):
        (path / checkpoint.CHECKSUMS).write_text(text)
        with pytest.raises(checkpoint.DamagedCheckpoint):
            checkpoint.load(path)


@pytest.mark.parametrize("name", [checkpoint.TENSORS, checkpoint.REST, checkpoint.CHECKSUMS])
@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "folder", "socket"])
def test_what_never_ends_is_damage(tmp_path: Path, name, kind, monkeypatch):
    path = checkpoint.save(tmp_path, 10, STATE, keep=1)
    (path / name).unlink()
    if kind == "pipe":
        os.mkfifo(path / name)
    elif kind == "folder":
        (path / name).mkdir()
    elif kind == "socket":
        monkeypatch.chdir(path)  # its name may not be long
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(name)
    else:
        (path / name).symlink_to(kind)
    with pytest.raises(checkpoint.DamagedCheckpoint, match="damaged or is none"):
        checkpoint.load(path)


def test_tensors_that_no_state_names_are_damage_found_at_once(tmp_path: Path):
    path = checkpoint.save(tmp_path, 10, STATE, keep=1)
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"t{n}": empty for n in range(100_000)}).encode()
    header += b" " * (-len(header) % 8)
    (path / checkpoint.TENSORS).write_bytes(len(header).to_bytes(8, "little") + header)
    with_sums(path)
    begun = time.monotonic()
    with pytest.raises(checkpoint.DamagedCheckpoint, match="differ in what tensors"):
        checkpoint.load(path)
    assert time.monotonic() - begun < 10


def test_a_newer_format_is_no_damage(tmp_path: Path):
    path = tamper(checkpoint.save(tmp_path, 10, STATE, keep=1), lambda w: {**w, "format": 99})
    with pytest.raises(UserError, match="format 99 is newer"):
        checkpoint.newest_valid(tmp_path, print)
    assert path.exists() and not list(tmp_path.glob("damaged-*"))


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("where", ["first", "later"])
def test_an_error_of_reading_is_no_damage(tmp_path: Path, monkeypatch, code, where):
    for samples in (10, 20):
        checkpoint.save(tmp_path, samples, STATE, keep=2)
    before = sorted(path.name for path in tmp_path.iterdir())
    opened = []

    def fail(path, flags, *rest, real=os.open):
        opened.append(path)
        if len(opened) > (where == "later"):
            raise OSError(code, os.strerror(code), str(path))
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(RunFailure, match=r"samples-000000000020 cannot be read.*nothing was"):
        checkpoint.newest_valid(tmp_path, print)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert checkpoint.newest_valid(tmp_path, print) == str(tmp_path / "samples-000000000020")


def test_no_descriptor_left_is_no_damage(tmp_path: Path):
    checkpoint.save(tmp_path, 10, STATE, keep=2)
    held, limits = [], resource.getrlimit(resource.RLIMIT_NOFILE)
    top = max(map(int, os.listdir("/proc/self/fd"))) + 2
    checkpoint.load(tmp_path / "samples-000000000010")  # what it imports is loaded
    resource.setrlimit(resource.RLIMIT_NOFILE, (top, limits[1]))
    try:
        with suppress(OSError):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        # One for the folder's listing, none for the files.
        os.close(held.pop())
        found = checkpoint._newest_first(tmp_path)
        held.append(os.open("/dev/null", os.O_RDONLY))
        with pytest.raises(RunFailure, match="Too many open files"):
            checkpoint.load(found[0])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in held:
            os.close(descriptor)
    assert checkpoint.newest_valid(tmp_path, print)


def test_where_none_is_valid_all_stay(tmp_path: Path):
    for samples in (10, 20):
        path = checkpoint.save(tmp_path, samples, STATE, keep=2)
        (path / checkpoint.REST).write_text("{}")
    said: list[str] = []
    for _ in range(2):
        assert checkpoint.newest_valid(tmp_path, said.append) is None
        assert checkpoint.any_there(tmp_path)
    assert len(said) == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "samples-000000000010",
        "samples-000000000020",
    ]


class Kill(BaseException):
    """What nothing catches, so that nothing is tidied up after it."""


@pytest.fixture
def kill(monkeypatch):
    """Return a function that saves 20 twice, or another, and dies at one of its disk operations."""

    def run(folder: Path, number: int, samples: int = 20, inside: bool = False) -> None:
        for at in (10, 20):
            checkpoint.save(folder, at, {"a": torch.ones(3), "at": at, "first": True}, keep=2)
        done: list[str] = []

        def counted(name, real):
            def call(*arguments, **options):
                if len(done) == number:
                    raise Kill
                done.append(name)
                return real(*arguments, **options)

            return call

        def unlink(*arguments, real=os.unlink, **options):
            if done[-1] == "rmtree" and done[-2] != "rmtree":
                done.append("rmtree")
                return real(*arguments, **options)
            raise Kill

        with monkeypatch.context() as patch:
            for owner, name in ((Path, "rename"), (shutil, "rmtree"), (checkpoint, "_sync")):
                patch.setattr(owner, name, counted(name, getattr(owner, name)))
            if inside:
                patch.setattr(os, "unlink", unlink)
            with pytest.raises(Kill):
                checkpoint.save(folder, samples, {"a": torch.zeros(3), "at": samples}, keep=2)

    return run


@pytest.mark.parametrize("number", [4, 5, 6, 7])
def test_killed_while_it_saves_again_at_the_same_sample(tmp_path: Path, kill, number):
    """4: before the first rename, 5: between the two, 6: before the sync, 7: before the removal."""
    kill(tmp_path, number)
    assert (tmp_path / "samples-000000000020").exists() == (number != 5)
    found = checkpoint.newest_valid(tmp_path, print)
    assert found is not None
    state = checkpoint.load(Path(found))
    assert state["at"] == 20 and ("first" in state) == (number < 6)
    assert checkpoint.latest_name(tmp_path) == Path(found).name
    # The next save keeps what counts, and sweeps up the rest.
    checkpoint.save(tmp_path, 30, {"at": 30}, keep=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 2 and names[-1] == "samples-000000000030"
    assert checkpoint.load(tmp_path / names[0])["at"] == 20
    checkpoint.save(tmp_path, 20, {"at": 20, "third": True}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "samples-000000000020",
        "samples-000000000030",
    ]


EXIT = """
import os, sys
from pathlib import Path
from largebatch.train import checkpoint
folder = Path(sys.argv[1])
checkpoint.save(folder, 20, {"first": True}, keep=2)
real, renamed = os.rename, []
def rename(*names):
    if renamed:
        os._exit(9)
    renamed.append(names)
    real(*names)
os.rename = rename
checkpoint.save(folder, 20, {"first": False}, keep=2)
"""


def test_a_process_that_ends_between_the_two_renames(tmp_path: Path):
    done = subprocess.run([sys.executable, "-c", EXIT, str(tmp_path)], capture_output=True)
    assert done.returncode == 9, done.stderr
    assert all(path.name.startswith(".partial-") for path in tmp_path.iterdir())
    found = checkpoint.newest_valid(tmp_path, print)
    assert found is not None and checkpoint.load(Path(found)) == {"first": True}
    checkpoint.save(tmp_path, 20, {"first": False}, keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["samples-000000000020"]


def test_half_a_folder_never_has_a_final_name(tmp_path: Path, kill):
    """Killed while the oldest is removed, after the first of its files."""
    kill(tmp_path, 99, 30, inside=True)
    said: list[str] = []
    assert checkpoint.newest_valid(tmp_path, said.append) == str(tmp_path / "samples-000000000030")
    assert sorted(p.name for p in tmp_path.glob("samples-*")) == [
        "samples-000000000020",
        "samples-000000000030",
    ]
    assert not said and list(tmp_path.glob(".partial-removed-*"))
    checkpoint.save(tmp_path, 40, STATE, keep=2)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_is_on_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch):
    done: list[object] = []

    def note(kind, real):
        def call(*arguments):
            done.append((kind, Path(arguments[0]).name))
            return real(*arguments)

        return call

    monkeypatch.setattr(checkpoint, "_sync", note("sync", checkpoint._sync))
    monkeypatch.setattr(Path, "rename", note("rename", Path.rename))
    checkpoint.save(tmp_path, 10, STATE, keep=2)
    partial = ".partial-samples-000000000010"
    assert done.index(("sync", partial)) < done.index(("rename", partial))
    assert done.index(("rename", partial)) < done.index(("sync", tmp_path.name))


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_every_file_has_the_mode_that_umask_says(tmp_path: Path, mask):
    old = os.umask(mask)
    try:
        path = checkpoint.save(tmp_path / "a", 10, STATE, keep=2)
        checkpoint.save_weights(tmp_path / "weights", {"a": torch.ones(1)})
    finally:
        os.umask(old)
    for file in (*path.iterdir(), tmp_path / "weights"):
        assert file.stat().st_mode & 0o777 == 0o666 & ~mask, file


def test_one_of_format_1_with_its_bare_nan_can_be_read(tmp_path: Path):
    """The layout of 0.1.0: format 1, and Python's NaN in state.json."""
    path = tmp_path / "samples-000000000012"
    path.mkdir()
    state = {
        "dict": [
            ["position", {"dict": [["samples", 12], ["seconds", math.nan], ["last", math.inf]]}],
            ["optimizer", {"dict": [["state", {"dict": [[0, {"tensor": "o/0"}]]}]]}],
            ["betas", {"tuple": [0.9, 0.999]}],
        ]
    }
    save_file({"o/0": torch.arange(3.0)}, path / checkpoint.TENSORS)
    text = json.dumps({"format": 1, "samples": 12, "state": state})
    assert "NaN" in text and "Infinity" in text
    (path / checkpoint.REST).write_text(text)
    loaded = checkpoint.load(with_sums(path))
    assert math.isnan(loaded["position"]["seconds"]) and loaded["position"]["last"] == math.inf
    assert torch.equal(loaded["optimizer"]["state"][0], torch.arange(3.0))
    assert loaded["betas"] == (0.9, 0.999)


def test_state_json_is_json(tmp_path: Path):
    state = {"loss": math.nan, "all": [math.inf, -math.inf, 1.5]}
    path = checkpoint.save(tmp_path, 1, state, keep=1)

    def refuse(name):
        raise AssertionError(name)

    json.loads((path / checkpoint.REST).read_text(), parse_constant=refuse)
    loaded = checkpoint.load(path)
    assert math.isnan(loaded["loss"]) and loaded["all"] == [math.inf, -math.inf, 1.5]


def test_no_save_where_another_run_has_taken_over(tmp_path: Path):
    run = RunDirectory(tmp_path / "run")
    run.acquire(wait=0)
    good = checkpoint.save(run.checkpoints, 10, STATE, keep=1)
    run.lock.unlink()
    other = "import sys, time; from largebatch.record import RunDirectory\n"
    other += "RunDirectory(sys.argv[1]).acquire(); print(1, flush=True); time.sleep(60)"
    code = [sys.executable, "-c", other, str(run.path)]
    with subprocess.Popen(code, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"1\n"
        try:
            with pytest.raises(RunFailure, match=rf"lock file was removed.*{process.pid}"):
                checkpoint.save(run.checkpoints, 20, STATE, keep=1)
        finally:
            process.kill()
    assert list(run.checkpoints.iterdir()) == [good]
    checkpoint.save(run.checkpoints, 20, STATE, keep=1)  # the other is gone: locked again
    run.release()


def test_weights_that_are_no_file_are_refused_at_once(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("pipe", "zeros", "."):
        with pytest.raises(UserError, match="no readable safetensors file"):
            checkpoint.load_weights(tmp_path / name)
