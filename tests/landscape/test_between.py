"""Paths between two trained runs, by the real command: kills, ranks, barriers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from largebatch.record import read_record

pytestmark = pytest.mark.slow

TRAIN = ["--data.limit=320", "--batch.size=32", "--schedule.length=10ep", "--optim.lr=0.05"]
TRAIN += ["--norm.kind=ghost", "--norm.ghost_size=8", "--precision.compute=fp64"]
TRAIN += ["--telemetry.hardware_every=0", "--model.name=digits_cnn"]
PATHS = ["--points=11", "--length=4ep", "--norm-samples=96", "--pictures", "line", "bezier"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "largebatch", *arguments]


def environment() -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**clean, "OMP_NUM_THREADS": "1"}


def carry_out(*arguments: str) -> str:
    done = subprocess.run(
        command(*arguments), env=environment(), capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for seed in (1, 2):
        carry_out("train", f"--run.dir={folder / f'r{seed}'}", f"--run.seed={seed}", *TRAIN)
    carry_out("landscape", *of(folder), *PATHS, f"--folder={folder / 'whole'}")
    return folder


def of(folder: Path) -> list[str]:
    return [str(folder / "r1"), str(folder / "r2")]


def points(folder: Path) -> dict[str, list[dict[str, float]]]:
    return {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(folder.glob("*.jsonl"))
    }


def test_the_trained_curve_goes_around_the_barrier_and_its_ends_are_the_runs(runs: Path) -> None:
    record = read_record(runs / "whole/record.json")
    barrier = {row["picture"]: row["barrier"] for row in record.rows}
    assert 0 < barrier["bezier"] < 0.5 * barrier["line"]
    bends = load_file(runs / "whole/bezier/weights.safetensors")
    for number, run in ((0, "r1"), (2, "r2")):
        own = load_file(runs / run / "weights.safetensors")
        moved = [k for k in own if "running_" not in k and "num_batches" not in k]
        assert moved
        assert all(torch.equal(bends[f"bends.{number}.{name}"], own[name]) for name in moved)
    found = points(runs / "whole")
    for path in (found["line"], found["bezier"]):
        for place, own in ((0, found["runs"][0]), (-1, found["runs"][1])):
            assert path[place]["loss"] == own["loss"]


def test_killed_and_continued_it_is_the_same_to_the_byte(runs: Path) -> None:
    folder = runs / "killed"
    arguments = command("landscape", *of(runs), *PATHS, f"--folder={folder}")

    def killed_when(there: Callable[[], bool]) -> None:
        process = subprocess.Popen(arguments, env=environment(), stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 200
        while not there() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        assert process.poll() is None, "it ended before it was killed"
        process.send_signal(signal.SIGKILL)
        process.wait()

    def lines() -> int:
        path = folder / "line.jsonl"
        return len(path.read_bytes().splitlines()) if path.exists() else 0

    killed_when(lambda: any((folder / "bezier/checkpoints").glob("samples-*")))
    assert not (folder / "bezier/summary.json").exists()
    killed_when(lambda: lines() >= 2)
    assert not (folder / "record.json").exists()
    carry_out(*arguments[3:])
    for name in ("runs.jsonl", "line.jsonl", "bezier.jsonl", "bezier/weights.safetensors"):
        assert (folder / name).read_bytes() == (runs / "whole" / name).read_bytes(), name


def test_two_ranks_find_the_same(runs: Path) -> None:
    carry_out("landscape", *of(runs), *PATHS, f"--folder={runs / 'two'}", "--nproc=2")
    one, two = points(runs / "whole"), points(runs / "two")
    assert one.keys() == two.keys()
    for name, path in one.items():
        for mine, theirs in zip(path, two[name], strict=True):
            assert mine["at"] == theirs["at"]
            assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-9, abs=1e-12)
            assert theirs["top1"] == mine["top1"]
