"""benchmarks/gpu.sh: parts fit its time, what is right comes first, skips have a reason."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return __import__("gpu_suite")


@pytest.mark.parametrize("half", [1, 2])
def test_a_half_fits_five_minutes(suite: ModuleType, half: int) -> None:
    assert sum(part.seconds for part in suite.PARTS if part.half in (0, half)) <= 300.0


def test_correctness_comes_first_and_programs_are_there(suite: ModuleType) -> None:
    halves = [part.half for part in suite.PARTS]
    assert halves == sorted(halves)
    for part in suite.PARTS:
        if part.arguments[0].endswith(".py"):
            assert (ROOT / part.arguments[0]).exists()


def test_what_a_machine_lacks_is_the_reason(
    suite: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {part.name: part for part in suite.PARTS}
    monkeypatch.setattr(suite, "gpu_count", lambda: 1)
    monkeypatch.setattr(suite.shutil, "which", lambda _: None)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    assert suite.unable(parts["tests"], False) == ""
    assert suite.unable(parts["ranks"], False) == "needs 2 GPUs, here is 1"
    assert "compute-sanitizer is neither" in suite.unable(parts["memcheck"], False)
    assert "no GPU" in suite.unable(parts["racecheck"], True)


def test_a_rehearsal_says_what_it_skipped(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_suite.py"), "--rehearse"]
    command += ["--only", "memcheck", "torus", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "skipped memcheck: a rehearsal has no GPU for it" in done.stdout
    parts = json.loads((tmp_path / "gpu.json").read_text())
    assert parts["torus"]["ended"] == "passed"
    assert len(parts["torus"]["record"]["rows"]) == 4
