from __future__ import annotations

import json
import math
import os
import pickle
from pathlib import Path

import pytest
import torch

from largebatch._errors import RunFailure, UserError
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
