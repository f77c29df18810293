"""Every signal that announces an end saves, and a run whose terminal or pipe is gone goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from largebatch.record import read_metrics

ENDLESS = ["--schedule.length=10000ep", "--telemetry.hardware_every=0", "--telemetry.every=10st"]
SHORT = ["--schedule.length=12st", "--telemetry.hardware_every=0", "--data.limit=400"]


@pytest.mark.parametrize(
    ("number", "nproc"),
    [
        (signal.SIGHUP, 1),
        (signal.SIGHUP, 2),
        pytest.param(signal.SIGUSR1, 1, marks=pytest.mark.slow),
        (signal.SIGUSR1, 2),
        pytest.param(signal.SIGUSR2, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGXCPU, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 2, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves(begin: Callable, number: signal.Signals, nproc: int) -> None:
    """As a dropped connection or a batch system sends it, with data workers, all told."""
    workers = ["--data.workers=1"] if nproc == 1 else []
    run = begin("run", *ENDLESS, *workers, nproc=nproc)
    run.wait_for(lambda: run.steps() > 3, "steps")
    if workers:  # a terminal that goes tells everybody
        for child in run.children():
            child.send_signal(number)
    run.process.send_signal(number)
    output = run.end()
    assert run.process.returncode == 0, output
    assert f"stopped by {number.name}" in output
    assert list((run.directory / "checkpoints").glob("*/state.json")), output


def test_a_terminal_that_goes_saves(tmp_path: Path) -> None:
    """The kernel sends SIGHUP, and what is written afterwards fails."""
    master, slave = os.openpty()
    command = [sys.executable, "-m", "largebatch", "train", f"--run.dir={tmp_path / 'run'}"]
    program = (
        "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, *command, *ENDLESS],
        stdin=slave, stdout=slave, stderr=slave, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    os.close(slave)
    metrics = tmp_path / "run" / "metrics.jsonl"
    os.set_blocking(master, False)
    deadline = time.monotonic() + 200
    while not metrics.exists() or len(read_metrics(metrics)) < 4:
        assert process.poll() is None and time.monotonic() < deadline
        try:
            os.read(master, 65536)
        except BlockingIOError:
            time.sleep(0.05)
    os.close(master)
    assert process.wait(120) == 0
    assert list((tmp_path / "run" / "checkpoints").glob("*/state.json"))


@pytest.mark.parametrize(
    ("redirection", "nproc"),
    [
        ("| head -1", 1),
        ("2>&1 | head -1", 2),
        pytest.param("> /dev/full", 1, marks=pytest.mark.slow),
        pytest.param("> /dev/full 2>&1", 2, marks=pytest.mark.slow),
        pytest.param(">&- 2>&- <&-", 1, marks=pytest.mark.slow),
    ],
)
def test_a_run_ends_well_whoever_listens(tmp_path: Path, redirection: str, nproc: int) -> None:
    directory = tmp_path / "run"
    command = [sys.executable, "-m", "largebatch", "train", f"--run.dir={directory}", *SHORT]
    done = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$@" {redirection}', "bash", *command,
         f"--run.nproc={nproc}"],
        capture_output=True, text=True, timeout=280, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (directory / "summary.json").exists() and (directory / "report.html").exists()
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    steps = [line["step"] for line in read_metrics(directory / "metrics.jsonl")]
    assert max(steps) == 12


@pytest.mark.slow
def test_a_rank_that_is_killed_is_named_by_the_launcher(begin: Callable) -> None:
    """As by the kernel where memory ran out: the rank itself has no last word."""
    run = begin("run", *ENDLESS, nproc=2)
    run.wait_for(lambda: run.steps() > 3, "steps")
    killed = run.ranks()[1]
    killed.kill()
    output = run.end()
    assert run.process.returncode == 1
    assert f"largebatch: rank 1 (process {killed.pid}) was ended by SIGKILL" in output
    assert "Traceback" not in output, output
