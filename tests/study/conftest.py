"""Studies of small runs, carried out by the real command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from largebatch.record import read_record

LONG = "--steps=600"
MODULE = '''
from largebatch.record import BenchmarkRecord
from largebatch.study import Job, Study
from largebatch.train.parse import parse

BASE = ["--data.limit=200", "--batch.size=64", "--norm.kind=ghost", "--norm.ghost_size=8",
        "--telemetry.hardware_every=0", "--checkpoint.every=4st"]


class Three(Study):
    """Three runs; the last branches off from the first, as its result says."""

    def __init__(self, steps: int = 16, lr: float = 0.05, wrong: bool = False):
        self.steps, self.lr, self.wrong = steps, lr, wrong

    def config(self, *more):
        return parse([*BASE, f"--optim.lr={self.lr}", *more])

    def jobs(self, done):
        short = ["--schedule.length=16st", "--checkpoint.at=[2ep]"]
        yield Job("first", self.config(*short))
        wrong = ["--optim.lr=1e30"] if self.wrong else []
        yield Job("long", self.config(f"--schedule.length={self.steps}st", *wrong))
        if "first" in done:
            faster = self.config(*short, f"--optim.lr={done['first'].summary['loss'] / 10}")
            yield Job("branch", faster, start=done["first"].checkpoint("2ep"))

    def conclude(self, done):
        rows = [{"job": name, "sha": each.summary["weights_sha256"],
                 "parent": (each.summary["parent"] or {}).get("samples")}
                for name, each in sorted(done.items())]
        return BenchmarkRecord("three", "bits", rows)


def nothing(folder: str):
    return folder


def broken(many: list[int] = ()):
    raise RuntimeError("no such thing")
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds the module ``three`` and is the one we are in."""
    (tmp_path / "three.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def environment() -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**clean, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def study() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that starts ``largebatch study``; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "largebatch", "study", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows of the study when nothing happens to it."""
    here = tmp_path_factory.mktemp("undisturbed")
    (here / "three.py").write_text(MODULE)
    command = [*("study", "three:Three", "--folder", "runs", "--at-a-time", "2"), LONG]
    done = subprocess.run(
        [sys.executable, "-m", "largebatch", *command], cwd=here, env=environment(), timeout=300
    )
    assert done.returncode == 0
    return read_record(here / "runs" / "record.json").rows
