"""`largebatch.train.run`: the same runs as the command's, from Python."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from largebatch._errors import RunFailure, UserError
from largebatch.processes.launch import launch_local_ranks
from largebatch.processes.lifetime import LAUNCHER_VARIABLE, StopRequest, die_with_launcher
from largebatch.record import read_metrics
from largebatch.train import Outcome, run
from largebatch.train.config import Config
from largebatch.train.parse import checked, parse

SHORT = ["--data.limit=200", "--batch.size=64", "--norm.kind=ghost", "--norm.ghost_size=8",
         "--schedule.length=2ep"]  # fmt: skip
ENDLESS = [*SHORT[:-1], "--schedule.length=10000ep", "--telemetry.hardware_every=0"]


def config(directory: Path, *arguments: str) -> Config:
    return parse([f"--run.dir={directory}", *SHORT, *arguments])


def test_a_run_and_the_same_call_again(tmp_path: Path, capsys) -> None:
    made = config(tmp_path / "run", "--run.deterministic=true")
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    first = run(made)
    assert first == Outcome(tmp_path / "run", True, 400, 8, first.summary)
    assert first.summary["samples"] == 400
    assert not torch.are_deterministic_algorithms_enabled()
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    written = (tmp_path / "run" / "summary.json").stat().st_mtime_ns
    capsys.readouterr()
    assert run(made) == first
    assert "this run is finished (top1 " in capsys.readouterr().out
    assert (tmp_path / "run" / "summary.json").stat().st_mtime_ns == written


@pytest.mark.slow
def test_local_ranks_and_the_command_give_the_same(tmp_path: Path, train) -> None:
    before = dict(os.environ)
    outcome = run(config(tmp_path / "door", "--run.nproc=2"))
    assert outcome.finished and outcome.summary["world_size"] == 2
    os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)  # torch sets it when it is first asked for
    before.pop("TORCHINDUCTOR_CACHE_DIR", None)
    assert dict(os.environ) == before
    by_command = train("command", *SHORT, nproc=2)
    assert by_command.summary["weights_sha256"] == outcome.summary["weights_sha256"]
    assert run(config(tmp_path / "door")).summary == outcome.summary


@pytest.mark.parametrize("nproc", [1, 2])
def test_a_stop_from_another_thread(tmp_path: Path, nproc: int) -> None:
    stop, metrics = StopRequest(), tmp_path / "run" / "metrics.jsonl"

    def ask() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if metrics.exists() and len(read_metrics(metrics)) > 3:
                break
            time.sleep(0.05)
        stop.ask("a thread")

    thread = threading.Thread(target=ask)
    thread.start()
    made = parse([f"--run.dir={tmp_path / 'run'}", f"--run.nproc={nproc}", *ENDLESS])
    before = signal.getsignal(signal.SIGTERM)
    outcome = run(made, stop=stop)
    thread.join()
    assert not outcome.finished and outcome.summary is None
    assert outcome.steps >= 3 and 0 < outcome.samples < 10000 * 200
    assert list((tmp_path / "run" / "checkpoints").glob("samples-*/state.json"))
    assert signal.getsignal(signal.SIGTERM) == before
    # Asked before it begins: it goes on, and stops again at once.
    further = run(made, stop=stop)
    assert not further.finished and further.steps >= outcome.steps


def test_it_runs_in_any_thread(tmp_path: Path) -> None:
    found = []

    def work() -> None:
        found.append(run(config(tmp_path / "run")))
        with pytest.raises(UserError, match="the main thread alone"):
            run(config(tmp_path / "run", "--run.nproc=2"), stop=StopRequest())
        found.append("refused")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0].finished and found[1] == "refused"


def test_mistakes_of_a_program_are_one_line(tmp_path: Path) -> None:
    made = config(tmp_path / "run")
    made.run.dir = tmp_path / "run"  # type: ignore[assignment]
    assert checked(made).run.dir == str(tmp_path / "run")
    made.schedule.length = "3 epochs"  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"schedule.length=.*90ep"):
        run(made)
    made = config(tmp_path / "run", "--run.nproc=2")
    made.optim.lr = float("nan")
    with pytest.raises(UserError, match=r"optim.lr"):
        run(made)
    assert not (tmp_path / "run").exists()


def test_ranks_that_fail_are_an_error(tmp_path: Path, capfd) -> None:
    made = config(tmp_path / "run", "--run.nproc=2", "--optim.lr=1e30", "--schedule.length=60st")
    with pytest.raises(RunFailure, match="the ranks ended with exit code 1"):
        run(made)
    assert "is not finite" in capfd.readouterr().err


RANK = """
import json, sys
from largebatch.train import run
from largebatch.train.parse import parse
outcome = run(parse(sys.argv[1:]))
told = json.dumps([outcome.finished, outcome.samples, outcome.summary["samples"]])
sys.stdout.write(f"outcome {told}\\n")  # One write: torchrun's ranks do not buffer what they print.
"""


def test_inside_ranks_of_a_launcher(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         str(script), f"--run.dir={tmp_path / 'run'}", *SHORT],
        capture_output=True, text=True, timeout=280, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("outcome [true, 400, 400]") == 2


@pytest.mark.parametrize("name", ["run", "Outcome"])
def test_the_door_is_light_until_it_is_opened(name: str) -> None:
    code = (
        "import sys, largebatch.train\n"
        "assert 'torch' not in sys.modules and 'yaml' not in sys.modules\n"
        f"from largebatch.train import {name}\nassert callable({name})\n"
        f"import largebatch.train.session\nfrom largebatch.train import {name} as again\n"
        f"assert again is {name}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(ImportError):
        from largebatch.train import nothing  # noqa: F401


def test_who_dies_with_its_launcher_hands_that_on_to_nobody(monkeypatch) -> None:
    monkeypatch.setenv(LAUNCHER_VARIABLE, str(os.getppid()))
    code = f"""
import os
from largebatch.processes.lifetime import die_with_launcher
die_with_launcher()
assert {LAUNCHER_VARIABLE!r} not in os.environ
"""
    environment = {**os.environ, LAUNCHER_VARIABLE: str(os.getpid())}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
    environment[LAUNCHER_VARIABLE] = "1"  # of another
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 1
    monkeypatch.delenv(LAUNCHER_VARIABLE)
    die_with_launcher()


def test_a_request_made_before_the_ranks_start_ends_them() -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop = StopRequest()
    stop.ask()
    from largebatch.processes.lifetime import signals_as_before

    with signals_as_before():
        assert launch_local_ranks(1, ["doctor", "--json"], stop) == 0
    assert signal.getsignal(signal.SIGTERM) == before
