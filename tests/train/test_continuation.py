"""What a command finds in a run directory, and what it leaves there."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from largebatch._errors import UserError
from largebatch.cli import main
from largebatch.record import RunDirectory, read_metrics
from largebatch.train import checkpoint
from largebatch.train.config import Config
from largebatch.train.continuation import choose_directory, headline, what_is_there
from largebatch.train.parse import dump

SHORT = ["--data.limit=200", "--batch.size=64", "--schedule.length=4st", "--checkpoint.every=2st"]
Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Return a function that trains in this process: the exit code, and what was printed."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def run(*arguments: str, directory: str = "run") -> tuple[int, str]:
        code = main(["train", f"--run.dir={tmp_path / directory}", *SHORT, *arguments])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    """Return a run that was stopped at 20 samples."""
    run = RunDirectory(tmp_path / "run")
    run.create()
    run.write_config(dump(Config()))
    for samples in (10, 20):
        checkpoint.save(run.checkpoints, samples, {"samples": samples}, keep=2)
    return run


def damage(directory: RunDirectory) -> None:
    for path in directory.checkpoints.glob("samples-*"):
        content = bytearray((path / "state.json").read_bytes())
        content[5] ^= 1
        (path / "state.json").write_bytes(content)


def entries(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_newest_valid_one_is_gone_on_from(directory):
    found = what_is_there(Config(), directory)
    assert found["checkpoint"] == str(directory.checkpoints / "samples-000000000020")


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(directory, tmp_path):
    good = tmp_path / "good"
    shutil.copytree(directory.checkpoints / "samples-000000000010", good)
    damage(directory)
    before = entries(directory.path)
    for _ in range(2):
        with pytest.raises(UserError, match="none to go on from"):
            what_is_there(Config(), directory)
    assert entries(directory.path) == before
    config = Config()
    config.checkpoint.resume = str(good)  # asked for by name
    assert what_is_there(config, directory)["checkpoint"] == str(good)


def test_nor_one_whose_checkpoints_were_all_set_aside(directory):
    for path in directory.checkpoints.iterdir():
        path.rename(path.with_name(f"damaged-{path.name}-1"))
    with pytest.raises(UserError, match="none to go on from"):
        what_is_there(Config(), directory)


def test_nor_one_without_its_config(directory):
    directory.config.unlink()
    with pytest.raises(UserError, match=r"config\.yaml is gone"):
        what_is_there(Config(), directory)


def test_the_run_of_another_user_is_passed_over(directory, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    theirs = Path("runs/digits_cnn-digits-20200101-000000")
    theirs.parent.mkdir()
    directory.path.rename(theirs)
    assert choose_directory(Config()) == theirs

    def deny(path, *rest, real=os.stat, **options):
        if str(path).startswith(str(theirs)):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *rest, **options)

    monkeypatch.setattr(os, "stat", deny)
    assert choose_directory(Config()) != theirs


def test_an_error_of_reading_ends_the_command_and_changes_nothing(command, tmp_path, monkeypatch):
    assert command()[0] == 0
    run = RunDirectory(tmp_path / "run")
    run.summary.unlink()
    before = entries(run.checkpoints), run.metrics.read_bytes()
    real = os.open

    def fail(path, *rest, **options):
        if str(path).endswith(checkpoint.TENSORS):
            raise OSError(errno.EMFILE, "Too many open files", str(path))
        return real(path, *rest, **options)

    monkeypatch.setattr(os, "open", fail)
    code, printed = command()
    monkeypatch.undo()
    assert code == 1 and "Too many open files" in printed
    assert printed.count("\n") == 1 and "passed over" not in printed
    assert (entries(run.checkpoints), run.metrics.read_bytes()) == before
    assert command()[0] == 0


def test_records_outlive_damage_and_a_second_start(command, tmp_path):
    run = RunDirectory(tmp_path / "run")
    assert command()[0] == 0
    # A damaged line: the others stay when the run goes on.
    lines = run.metrics.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"', b"\xff", 1)
    run.metrics.write_bytes(b"".join(lines))
    run.summary.unlink()
    code, printed = command()
    assert code == 0 and "continuing at" in printed
    assert run.metrics.read_bytes().startswith(b"".join(lines))
    assert b"left out as damaged: line 2, of" in run.report.read_bytes()
    # All damaged: refused, and nothing is touched.
    run.summary.unlink()
    damage(run)
    before = entries(run.path)
    code, printed = command()
    assert code == 2 and "none to go on from" in printed and "\n" not in printed.splitlines()[-1]
    assert entries(run.path) == before
    # Removed by hand: the run starts over, and the old lines are kept.
    shutil.rmtree(run.checkpoints)
    old = run.metrics.read_bytes()
    code, printed = command()
    assert code == 0 and "metrics-1.jsonl: the run starts over" in printed
    assert (run.path / "metrics-1.jsonl").read_bytes() == old
    assert [line["step"] for line in read_metrics(run.metrics) if line["split"] == "train"] == [
        1,
        2,
        3,
        4,
    ]


def test_a_diverged_run_leaves_json(command, tmp_path):
    command("--optim.lr=1e30", "--run.deterministic=false")
    run = tmp_path / "run"

    def refuse(name):
        raise AssertionError(name)

    for path in (*run.glob("*.json"), *run.glob("checkpoints/*/*.json")):
        json.loads(path.read_text(), parse_constant=refuse)
    for text in (run / "metrics.jsonl").read_text().splitlines():
        json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("there", [False, True])
def test_a_config_that_is_refused_leaves_nothing(command, tmp_path, there):
    if there:
        (tmp_path / "a" / "run").mkdir(parents=True)
    before = entries(tmp_path)
    for wrong in (
        "--data.root=/nowhere",
        "--model.init_from=/nowhere",
        "--model.num_classes=3",
        "--checkpoint.resume=/",
        "--distributed.engine=deepspeed",
    ):
        arguments = [wrong, *(["--data.name=imagefolder"] if "data.root" in wrong else [])]
        code, printed = command(*arguments, directory="a/run")
        assert code == 2, (wrong, printed)
        assert printed.count("\n") == 1, printed
        assert entries(tmp_path) == before, wrong
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, printed = command(f"--telemetry.prometheus_port={port}", directory="a/run")
    assert code == 2 and "prometheus_port" in printed
    assert entries(tmp_path) == before


def test_a_checkpoint_of_another_run_is_refused_and_leaves_nothing(command, tmp_path):
    other = checkpoint.save(tmp_path / "other", 10, {"a": 1}, keep=1)
    before = entries(tmp_path)
    code, printed = command(f"--checkpoint.resume={other}")
    assert code == 2 and "does not fit this run" in printed and printed.count("\n") == 1
    assert entries(tmp_path) == before


@pytest.mark.parametrize("nproc", [1, 2])
@pytest.mark.parametrize("name", ["x" * 300, "file/run"])
def test_a_run_dir_that_cannot_be(command, tmp_path, name, nproc):
    (tmp_path / "file").write_text("")
    code, printed = command(f"--run.nproc={nproc}", directory=name)
    assert code == 2 and "run.dir=" in printed and printed.count("\n") == 1


def test_a_run_with_a_target_is_known_by_what_it_took():
    summary = {"headline": "top1", "top1": 0.97, "loss": 0.08}
    assert headline(summary) == "top1 0.97"
    reached = {"loss": 0.08, "seconds": 0.6, "samples": 3652, "steps": 30}
    assert headline({**summary, "target": reached}) == "loss 0.08 after 3,652 samples"
    assert headline({**summary, "target": None}) == "top1 0.97"


@pytest.mark.parametrize("nproc", [1, 2])
def test_a_disk_that_is_full_from_the_start(command, tmp_path, monkeypatch, nproc):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    code, printed = command(f"--run.nproc={nproc}")
    assert code in (1, 2) and "No space left" in printed and printed.count("\n") == 1
    assert entries(tmp_path) == []
