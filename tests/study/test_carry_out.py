"""A study is carried out whatever ends on the way: finished jobs are read, the others go on."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from largebatch._errors import RunFailure, UserError
from largebatch.processes.lifetime import StopRequest
from largebatch.record import BenchmarkRecord, read_metrics, read_record
from largebatch.study import Job, Study, carry_out, devices
from largebatch.study.carry_out import owned
from largebatch.study.job import Place
from largebatch.train import Outcome
from largebatch.train.parse import parse

STUDY = ["three:Three", "--folder"]
LONG = "--steps=600"
SECONDS = 240


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    output = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == code, output
    return output


def steps(run: Path) -> int:
    path = run / "metrics.jsonl"
    return max((line["step"] for line in read_metrics(path)), default=0) if path.exists() else 0


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def child(process: subprocess.Popen[str], name: str) -> psutil.Process:
    """Return the process of a job."""
    for one in psutil.Process(process.pid).children():
        if any(word.endswith(f"{name}.yaml") for word in one.cmdline()):
            return one
    raise AssertionError(name)


def written(run: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in sorted(run.rglob("*")) if p.name != "lock"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_job_and_a_killed_study_go_on(here: Path, study: Callable, undisturbed) -> None:
    folder = here / "runs"
    process = study(*STUDY, str(folder), LONG, "--at-a-time", "2")
    wait_for(process, lambda: (folder / "branch" / "report.html").exists())
    wait_for(process, lambda: steps(folder / "long") > 20)
    before = {name: written(folder / name) for name in ("first", "branch")}
    killed = child(process, "long")
    killed.kill()
    output = finish(process, 1)
    assert "1 of 3 jobs failed, first long, which was ended by SIGKILL" in output
    assert output.rstrip().endswith("the same command goes on")
    at = steps(folder / "long")
    assert not (folder / "record.json").exists()

    # Again, and the study itself is killed: its job does not outlive it.
    process = study(*STUDY, str(folder), LONG)
    wait_for(process, lambda: steps(folder / "long") > at + 10)
    left = child(process, "long")
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs([left], timeout=20)
    assert not alive
    at = steps(folder / "long")

    output = finish(study(*STUDY, str(folder), LONG))
    assert "3 jobs, 2 of them done" in output and "first: started" not in output
    log = (folder / "jobs" / "long.log").read_text()
    assert log.count("continuing at") == 2
    assert {name: written(folder / name) for name in before} == before
    rows = read_record(folder / "record.json").rows
    assert rows == undisturbed, "as if nothing had been"
    assert [row["parent"] for row in rows] == [400, None, None]


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_a_signal_is_passed_on(here: Path, study: Callable, number: signal.Signals) -> None:
    folder = here / "runs"
    process = study(*STUDY, str(folder), "--steps=100000", "--at-a-time", "2")
    wait_for(process, lambda: steps(folder / "long") > 3)
    begun = time.monotonic()
    process.send_signal(number)
    output = finish(process, 1)
    assert time.monotonic() - begun < 60
    assert f"stopped by {number.name}" in output and "the same command goes on" in output
    assert f"stopped by {number.name} at" in (folder / "jobs" / "long.log").read_text()
    assert list((folder / "long" / "checkpoints").glob("samples-*/state.json"))


@pytest.mark.slow
def test_a_failing_job_is_named_with_its_last_line(here: Path, study: Callable) -> None:
    folder = here / "runs"
    output = finish(study(*STUDY, str(folder), "--wrong=true", "--steps=60"), 1)
    last = output.rstrip().splitlines()[-1]
    assert "1 of 3 jobs failed, first long, which failed with exit code 1: largebatch: " in last
    assert "is not finite" in last and str(folder / "jobs" / "long.log") in last
    assert "[2/3] branch: done, top1" in output, "the others come to their end"
    # What is asked for is another run than what lies there.
    output = finish(study(*STUDY, str(folder), "--steps=60"), 2)
    assert "job long: optim.lr=0.05: the run in" in output and "1e+30" in output
    output = finish(study(*STUDY, str(folder), "--wrong=true", "--steps=60", "--lr=0.1"), 2)
    assert "job first: optim.lr=0.1" in output
    assert output.count("\n") == 1


class One(Study):
    """What a test wants to be asked for."""

    def __init__(self, *jobs: Job) -> None:
        self._jobs = jobs

    def jobs(self, done):
        return self._jobs

    def conclude(self, done):
        return BenchmarkRecord("one", "", [{"job": name} for name in done])


CONFIG = ["--data.limit=64", "--schedule.length=1st"]


def test_in_this_process(tmp_path: Path, capsys) -> None:
    record = carry_out(One(Job("a", parse(CONFIG))), tmp_path)
    assert record.rows == [{"job": "a"}]
    assert "[1/1] a: done, top1" in capsys.readouterr().out
    changed = parse([*CONFIG, "--run.target={loss: 0.3}"])  # free, but it is what is read
    with pytest.raises(UserError, match=r"job a: run.target="):
        carry_out(One(Job("a", changed)), tmp_path)
    with pytest.raises(UserError, match=r"job a: start=.*began at its first sample"):
        carry_out(One(Job("a", parse(CONFIG), start=tmp_path)), tmp_path)
    elsewhere = parse([*CONFIG, "--data.workers=1", "--telemetry.every=2st"])
    assert carry_out(One(Job("a", elsewhere)), tmp_path).rows == [{"job": "a"}]
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert carry_out(One(Job("a", parse(CONFIG))), moved).rows == [{"job": "a"}]


@pytest.mark.slow
def test_a_run_that_diverges_can_be_a_result(tmp_path: Path, capsys) -> None:
    wrong = ["--data.limit=64", "--batch.size=16", "--schedule.length=8ep", "--optim.lr=1e30"]
    study = One(Job("a", parse(wrong), may_be_lost=True), Job("b", parse(CONFIG)))
    assert carry_out(study, tmp_path).rows == [{"job": "a"}, {"job": "b"}]
    assert "a: " in (said := capsys.readouterr().out) and "is not finite" in said
    before = written(tmp_path / "a")
    outcomes: dict[str, Outcome] = {}
    study.conclude = lambda done: outcomes.update(done) or BenchmarkRecord("one", "", [])  # type: ignore[method-assign]
    carry_out(study, tmp_path)
    assert "is not finite" in outcomes["a"].lost and not outcomes["a"].finished
    assert outcomes["b"].lost == "" and outcomes["b"].finished
    assert written(tmp_path / "a") == before, "only read"
    with pytest.raises(RunFailure, match=r"1 of 1 jobs failed, first a, which failed"):
        carry_out(One(Job("a", parse(wrong))), tmp_path)


def test_a_stop_before_it_begins(tmp_path: Path) -> None:
    stop = StopRequest()
    stop.ask("the test")
    with pytest.raises(RunFailure, match="stopped by the test, 0 of 1 jobs are done"):
        carry_out(One(Job("a", parse(CONFIG))), tmp_path, stop=stop)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", ["", "a/b", "..", ".a", "a b", "-a", "jobs", "a\n", "x" * 300])
def test_names_that_are_no_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="job "):
        carry_out(One(Job(name, parse(CONFIG))), tmp_path)


def test_what_cannot_be_carried_out(tmp_path: Path) -> None:
    twice = Job("a", parse(CONFIG))
    with pytest.raises(UserError, match="job a: the study asks for two"):
        carry_out(One(twice, twice), tmp_path)
    with pytest.raises(UserError, match="at least 1"):
        carry_out(One(twice), tmp_path, at_a_time=0)
    with owned(tmp_path), pytest.raises(UserError, match="in use by another command"):
        carry_out(One(twice), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        carry_out(One(twice), tmp_path / "file")


def test_a_jobs_place(tmp_path: Path) -> None:
    place = Place(Job("a", parse([*CONFIG, "--run.dir=x"]), tmp_path / "c", nproc=3), tmp_path)
    config = place.config
    assert config.run.dir == str(tmp_path / "a") and config.run.name == "a"
    assert config.run.nproc == 3 and config.checkpoint.resume == str(tmp_path / "c")
    assert parse(place.command()[4:]) == config


def test_jobs_at_a_time_share_the_host(monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "usable_cores", lambda: 8)
    monkeypatch.setattr(devices.torch.cuda, "device_count", lambda: 0)
    assert devices.share(0, 1, 1) == {}
    assert devices.share(1, 2, 2) == {"OMP_NUM_THREADS": "2"}
    monkeypatch.setattr(devices.torch.cuda, "device_count", lambda: 4)
    gpus = [devices.share(slot, 2, 2)["CUDA_VISIBLE_DEVICES"] for slot in range(2)]
    assert gpus == ["0,1", "2,3"]
    gpus = [devices.share(slot, 6, 1)["CUDA_VISIBLE_DEVICES"] for slot in range(6)]
    assert gpus == ["0", "1", "2", "3", "0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,GPU-c,GPU-d")
    assert devices.share(1, 2, 1)["CUDA_VISIBLE_DEVICES"] == "GPU-c,GPU-d"
