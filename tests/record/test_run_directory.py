"""RunDirectory: names, lock and summary."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

import pytest

from largebatch._errors import RunFailure, UserError
from largebatch.record import RunDirectory, confirm_owned

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


def test_what_the_task_has_left(tmp_path):
    run = RunDirectory(tmp_path)
    assert run.task.name == "task.json"
    assert run.read_task() is None
    run.task.write_text('{"task": "causal_lm", "later": 1}')
    assert run.read_task() == {"task": "causal_lm", "later": 1}
    for damage in ("{", "[]", "\x00", "[" * 100_000, '{"a": "' + "x" * 2**20 + '"}'):
        run.task.write_text(damage)
        with pytest.raises(UserError, match=r"task\.json: damaged .*; delete it"):
            run.read_task()


def test_an_unusable_directory_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=r"run\.dir=.*cannot be written"):
            RunDirectory(path).acquire(wait=0)
    with pytest.raises(UserError, match=r"cannot be written"):
        RunDirectory("/proc/run").create()


def take_over(path):
    """Remove the lock of a run and start another one there; return its process."""
    (path / "lock").unlink()
    process, printed = hold(path)
    assert printed
    return process


def test_a_lock_removed_is_taken_again_or_the_run_ends(tmp_path):
    run = RunDirectory(tmp_path / "run")
    confirm_owned(run.path)  # nobody's: nothing to say
    run.acquire(wait=0)
    confirm_owned(run.path)
    run.lock.unlink()
    confirm_owned(run.path)
    process, printed = hold(run.path)
    assert process.wait() != 0 and not printed, "the new lock is one"
    process = take_over(run.path)
    try:
        with pytest.raises(RunFailure, match=rf"lock file was removed.* {process.pid} "):
            confirm_owned(run.path)
    finally:
        process.kill()
        process.wait()
    run.write_config("")
    run.release()
    assert run.lock.exists(), "another's"


def test_a_lock_that_went_while_it_was_taken_is_none(tmp_path, monkeypatch):
    run = RunDirectory(tmp_path)
    real, removed = fcntl.lockf, []

    def remove_first(*arguments):
        if not removed:
            removed.append(run.lock.unlink())
        return real(*arguments)

    monkeypatch.setattr(fcntl, "lockf", remove_first)
    run.acquire(wait=1)
    assert removed and run.lock.exists()
    process, printed = hold(run.path)
    assert process.wait() != 0 and not printed
    run.release()


def test_the_lock_tells_no_command_line(tmp_path):
    run = RunDirectory(tmp_path)
    run.acquire(wait=0)
    assert set(json.loads(run.lock.read_text())) == {"pid", "host", "since"}
    run.release()


@pytest.mark.parametrize("there", [(), ("a",), ("a", "b"), ("a", "b", "checkpoints")])
def test_a_run_that_never_began_leaves_nothing(tmp_path, there):
    before = tmp_path.joinpath(*there)
    before.mkdir(parents=True, exist_ok=True)
    run = RunDirectory(tmp_path / "a" / "b")
    run.acquire(wait=0)
    run.release()
    assert before.exists()
    assert sorted(tmp_path.rglob("*")) == sorted(
        tmp_path.joinpath(*there[:n]) for n in range(1, len(there) + 1)
    )


def test_what_others_put_there_stays(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.acquire(wait=0)
    (run.checkpoints / "mine").write_text("")
    run.release()
    assert [path.name for path in run.path.iterdir()] == ["checkpoints"]
    run.acquire(wait=0)
    run.write_config("a: 1")
    run.release()
    assert run.lock.exists()


def test_who_waits_for_an_owner_that_leaves_nothing_gets_the_directory(tmp_path):
    first, second = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "run")
    first.acquire(wait=0)
    timer = threading.Timer(0.3, first.release)
    timer.start()
    second.acquire(wait=10)
    timer.join()
    assert second.lock.exists()
    second.release()


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "a\udcffb"])
def test_a_name_that_cannot_be_is_one_clear_line(tmp_path, name):
    with pytest.raises(UserError, match=r"run\.dir=.*cannot be written"):
        RunDirectory(tmp_path / name).acquire(wait=0)


def test_a_full_disk_is_one_clear_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(UserError, match=r"run\.dir=.*No space left"):
        run.acquire(wait=0)
    monkeypatch.undo()
    run.acquire(wait=0)  # the lock was given back
    run.release()


def test_a_summary_that_never_ends_is_damaged(tmp_path):
    run = RunDirectory(tmp_path)
    run.summary.symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"summary\.json: damaged"):
        run.read_summary()
    run.summary.unlink()
    run.summary.write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"summary\.json: damaged"):
        run.read_summary()
