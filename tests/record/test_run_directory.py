"""RunDirectory: names, lock and summary."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

from largebatch._errors import UserError
from largebatch.record import RunDirectory

HOLD = """
import os, sys, time
from largebatch.record import RunDirectory
run = RunDirectory(sys.argv[1])
run.acquire(wait=0)
child = os.fork() if len(sys.argv) > 2 else 1
if child == 0:
    time.sleep(60)
print(child, flush=True)
time.sleep(60)
"""


def hold(path, *arguments):
    """Start a process that owns ``path``; return it and what it printed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), *arguments], stdout=subprocess.PIPE, text=True
    )
    return process, process.stdout.readline().strip()


def test_default_path():
    now = datetime(2026, 1, 2, 3, 4, 5)
    assert RunDirectory.default_path("digits", now) == Path("runs/digits-20260102-030405")
    assert RunDirectory.default_path("../a b", now) == Path("runs/a-b-20260102-030405")
    assert re.fullmatch(r"runs/run-\d{8}-\d{6}", str(RunDirectory.default_path("//")))


def test_files_are_the_designs(tmp_path):
    run = RunDirectory(tmp_path / "run")
    assert not run.path.exists()
    run.create()
    assert run.checkpoints.is_dir()
    names = [run.config, run.metrics, run.report, run.weights, run.summary]
    assert [path.name for path in names] == [
        "config.yaml",
        "metrics.jsonl",
        "report.html",
        "weights.safetensors",
        "summary.json",
    ]


def test_a_locked_run_names_its_owner_and_waits(tmp_path):
    process, _ = hold(tmp_path)
    try:
        start = time.monotonic()
        with pytest.raises(UserError, match=rf"process {process.pid} on .* since 20.*run\.dir"):
            RunDirectory(tmp_path).acquire(wait=0.5)
        assert 0.5 <= time.monotonic() - start < 5
        os.kill(process.pid, signal.SIGKILL)
        RunDirectory(tmp_path).acquire(wait=20)
    finally:
        process.kill()
        process.wait()


def test_a_child_does_not_inherit_the_lock(tmp_path):
    process, child = hold(tmp_path, "fork")
    try:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        os.kill(int(child), 0)  # it lives, and holds nothing
        run = RunDirectory(tmp_path)
        run.acquire(wait=5)
        assert json.loads(run.lock.read_text())["pid"] == os.getpid()
        run.release()
    finally:
        process.kill()
        os.kill(int(child), signal.SIGKILL)


def test_two_runs_of_one_process(tmp_path):
    first, second = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "." / "run")
    first.acquire(wait=0)
    with pytest.raises(UserError, match=r"another run of this process"):
        second.acquire(wait=0.2)
    # Being refused must not have dropped the lock, which closing a descriptor would do.
    process, printed = hold(first.path)
    assert process.wait() != 0
    assert printed == ""
    first.release()
    second.acquire(wait=0)
    second.release()
    second.release()


def test_summary(tmp_path):
    run = RunDirectory(tmp_path)
    run.create()
    assert not run.finished()
    assert run.read_summary() is None
    run.write_summary({"top1": 0.98})
    assert run.finished()
    assert run.read_summary() == {"top1": 0.98}
    for damage in ("{", "[]", "\x00"):
        run.summary.write_text(damage)
        with pytest.raises(UserError, match=r"summary\.json: damaged"):
            run.read_summary()


def test_an_unusable_directory_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=r"run\.dir=.*cannot be written"):
            RunDirectory(path).acquire(wait=0)
    with pytest.raises(UserError, match=r"cannot be written"):
        RunDirectory("/proc/run").create()
