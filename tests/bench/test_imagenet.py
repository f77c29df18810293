"""Throughput of training: every contender is timed or listed with the reason."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from largebatch.bench import imagenet
from largebatch.bench.imagenet import ABSENT, OWN, REFERENCE, Settings
from largebatch.cli import main
from largebatch.record import BenchmarkRecord

SETTINGS = Settings("resnet18", image_size=32, seconds=0.01, rounds=1)


@pytest.fixture(scope="module")
def record() -> BenchmarkRecord:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "timm", None)
        return imagenet.run([4], SETTINGS, list(OWN)[:3])


def test_contenders_are_timed_or_listed_with_the_reason(record: BenchmarkRecord) -> None:
    timed = {(r["contender"], r["precision"]) for r in record.rows if "p5" in r}
    names = [*list(OWN)[:3], REFERENCE]
    assert timed == {(name, p) for name in names for p in ("fp32", "bf16")}
    absent = {r["contender"]: r["images/s"] for r in record.rows if "p5" not in r}
    assert set(absent) == {"timm", *ABSENT}
    assert all(text.startswith("not run: ") for text in absent.values())


def test_shares_and_limits(record: BenchmarkRecord) -> None:
    for row in record.rows:
        if "p5" not in row:
            continue
        assert 0 < row["norm share"] < 1 and 0 < row["convolution share"] < 1
        assert row["norm share"] + row["convolution share"] <= 1
        assert ("limit" in row) == (row["contender"] != REFERENCE)
    reference = [row for row in record.rows if row["contender"] == REFERENCE]
    assert [row["times torchvision"] for row in reference] == [1.0, 1.0]


def test_memory_that_runs_out_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def measure(batch: int, precision: str, *others: Any) -> list[dict[str, Any]]:
        tried.append(batch)
        if batch > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return [{"contender": "x", "batch": batch, "images/s": 1.0}]

    monkeypatch.setattr(imagenet, "_measure", measure)
    rows = imagenet.run([8], SETTINGS).rows
    assert tried == [8, 4, 2] * 2
    assert [row["batch"] for row in rows if "batch" in row] == [2, 2]


def test_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any, record: BenchmarkRecord
) -> None:
    asked = []
    monkeypatch.setattr(imagenet, "run", lambda *given: asked.append(given[2]) or record)
    page, file = tmp_path / "page.html", tmp_path / "record.json"
    command = ["bench", "imagenet", f"--html={page}", f"--json={file}"]
    assert main([*command, "--with", "LARS", "compiled"]) == 0
    assert asked == [["largebatch", "largebatch, LARS", "largebatch, compiled"]]
    assert set(asked[0]) <= set(OWN)
    assert page.stat().st_size > 10**6 and file.exists()
    assert "times torchvision" in capsys.readouterr().out
    assert main([*command, "--with", "luck"]) == 2
    assert 'choose from "torch\'s batch norm"' in capsys.readouterr().err
    assert main(["bench", "loop", f"--html={page}"]) == 2
    assert "bench loop has no page" in capsys.readouterr().err
