"""`study critical-batch`: branches off a real run, from config to page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from largebatch.cli import main
from largebatch.record import json_text, read_metrics, read_record
from largebatch.schedule import Duration
from largebatch.study import account
from largebatch.study.branches import noise_of
from largebatch.study.critical_batch import CriticalBatch
from largebatch.study.job import Place
from largebatch.study.overhead import Curve
from largebatch.train import Outcome, run
from largebatch.train.parse import parse

WINDOW = Duration(640, "sa")  # whose average, of 80 samples, takes steps of 265
RECIPE = ["--recipe=quadratic", "--schedule.length=2048sa", "--checkpoint.at=[25%, 50%]"]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "parent"
    run(parse([*RECIPE, f"--run.dir={folder}"]))
    return folder


def test_branches_read_the_same_samples_and_differ_in_what_follows_the_batch(parent: Path) -> None:
    study = CriticalBatch(run=str(parent), batches=["x4"], seeds=2, scaling="sqrt", window=WINDOW)
    jobs = {job.name: job for job in study.jobs({})}
    assert len(jobs) == 8
    own = jobs["at-25%-batch-x1-rate-x1-seed-0-of-0.833"].config  # it is compared at a window
    other = jobs["at-25%-batch-x4-rate-x1-seed-0"].config
    assert (own.batch.size, other.batch.size) == (4, 16)
    assert own.optim.lr == pytest.approx(0.2 * 0.75**2, rel=2e-3)  # of the run's curve at a quarter
    assert other.optim.lr == pytest.approx(2 * own.optim.lr)
    assert own.run.seed == other.run.seed == 0
    assert str(own.schedule.length) == "1152sa" and str(other.schedule.length) == "1280sa"
    assert own.schedule.curve == "constant" and str(own.ema.half_life) == "80sa"
    assert [each["name"] for each in own.probes] == ["noise"] and other.probes == []
    assert jobs["at-25%-batch-x4-rate-x1-seed-1"].config.run.seed == 1


def test_the_annealed_ones_hold_their_rate_and_fall_to_zero(parent: Path, tmp_path: Path) -> None:
    study = CriticalBatch(
        run=str(parent), at=[Duration.parse("25%")], batches=["x2"], seeds=1, anneal=True,
        window=Duration.parse("20%"),
    )  # fmt: skip
    jobs = {job.name: job for job in study.jobs({})}
    assert len(jobs) == 4
    job = jobs["at-25%-batch-x2-rate-x1-seed-0"]
    run(Place(job, tmp_path).config)
    lines = read_metrics(tmp_path / job.name / "metrics.jsonl")
    rates = [(line["samples"], line["lr"]) for line in lines if "lr" in line]
    rate, start, length = job.config.optim.lr, 512, 492
    for samples, found in rates:
        begun = samples - 8  # of the step
        left = min(1.0, (start + length - begun) / (0.2 * length))
        assert found == pytest.approx(rate * left, rel=0.02, abs=1e-3 * rate)


def test_doublings_go_on_until_two_in_a_row_fail(parent: Path, monkeypatch) -> None:
    study = CriticalBatch(run=str(parent), seeds=1, window=WINDOW)
    (point, _) = study.points({})
    good: set[int] = set()
    values = {True: 0.05, False: 0.5}
    monkeypatch.setattr(
        study.findings, "values", lambda point, factor, *rest: [values[factor in good]]
    )
    assert study._factors(point, {}) == [2, 4]
    good |= {2, 4}
    assert study._factors(point, {}) == [2, 4, 8, 16]
    good |= {16}
    assert study._factors(point, {}) == [2, 4, 8, 16, 32, 64]
    good |= {32, 64}
    assert study._factors(point, {}) == [2, 4, 8, 16, 32, 64]  # a window takes no more


def test_the_best_rate_of_a_branch_is_told_as_the_peak_of_a_whole_run(
    parent: Path, monkeypatch
) -> None:
    """Branches hold the rate that the curve has at their checkpoint; a run starts at its peak."""
    study = CriticalBatch(run=str(parent), rates=3, seeds=1, scaling="sqrt", window=WINDOW)
    found = {0.71: 0.3, 1.0: 0.2, 1.41: 0.1}
    monkeypatch.setattr(study.findings, "values", lambda point, factor, rate, *rest: [found[rate]])
    for point in study.points({}):
        assert study.findings.peak_rate(point, 4, {}) == pytest.approx(0.2 * 2 * 1.41)


def test_a_run_that_makes_no_progress_is_undecided(parent: Path, monkeypatch) -> None:
    study = CriticalBatch(run=str(parent), batches=["x2"], seeds=2, window=WINDOW)
    point, samples = study.points({})[0], np.arange(1.0, 12.0)
    falling = Curve(samples, 1 / samples)
    rising = Curve(samples, 1 + 0.01 * samples)
    curves = {0: falling, 1: rising}
    monkeypatch.setattr(study.findings, "curve", lambda branch, *_: curves[branch.seed])
    monkeypatch.setattr(account, "noise_of", lambda *_: {})
    done = {job.name: Outcome(parent, True, 1, 1, {}) for job in study.jobs({})}
    told = account.Account(study.findings, point, [2], done)
    assert {row["verdict"] for row in told.rows()} == {"undecided"}
    assert told.limit.batch is None and "does not fall steadily" in next(told.notes())
    curves[1] = falling
    told = account.Account(study.findings, point, [2], done)
    assert {row["verdict"] for row in told.rows()} == {"as good"}


def test_the_noise_scale_is_the_runs_own_where_it_has_one(tmp_path: Path) -> None:
    """The last before the checkpoint: later ones are of later weights."""
    lines = [
        {"split": "train", "samples": samples, "noise_scale": value, "noise_scale_low": value / 2}
        for samples, value in ((100, 5.0), (200, 10.0), (300, 40.0))
    ]
    lines.append({"split": "train", "samples": 310, "loss": 1.0})
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json_text(line)}\n" for line in lines))
    assert noise_of(tmp_path, 250) == {"noise_scale": 10.0, "noise_scale_low": 5.0}
    assert noise_of(tmp_path, 50) == {}
    assert noise_of(tmp_path) == {"noise_scale": 40.0, "noise_scale_low": 20.0}


def test_the_cost_is_said_before(parent: Path) -> None:
    study = CriticalBatch(run=str(parent), batches=["x2", "x4"], seeds=2, window=WINDOW)
    first, second = study.says({})
    # Windows of 640 samples: 2 references, and 4 branches of 1.2 windows, at each of two places.
    assert "a branch is 37.50% of the run, a checkpoint 212.5%" in first
    assert second.startswith("2 checkpoints: 425.0% of the run, 8,704 samples; at its speed ")
    # Every 40 samples, of plain and of averaged weights: 16 times in a reference, 20 in a branch.
    assert "of 448 passes over the held-out set and " in second and " of 12 starts: " in second


def test_a_batch_that_is_out_of_the_question_needs_one_seed(parent: Path, monkeypatch) -> None:
    study = CriticalBatch(run=str(parent), batches=["x2", "x64"], seeds=3, window=WINDOW)
    (point, _) = study.points({})
    found = {2: 0.1, 64: 1.5}
    monkeypatch.setattr(
        study.findings, "_value", lambda point, factor, *rest: found.get(factor, 0.0)
    )
    asked = [len(list(study._branches(point, factor, {}))) for factor in (1, 2, 64)]
    assert asked == [3, 3, 1]
    assert study.findings.values(point, 64, 1.0, "loss", {}) == [1.5]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name one of a run's directory, or the training"),
        (["absent"], "absent: no run directory"),
        (["RUN", "--at", "30%", "--window", "640sa"], "--at=30%"),
        (["RUN", "--at", "50%", "--window", "1500sa"], "the run ends within a window of 1,500"),
        (["RUN", "--batches", "x1"], "--batches: 'x1'"),
        (["--recipe", "digits", "--at", "0.5ep"], "--at=0.5ep: within the warm-up, which ends at"),
        (["--recipe", "digits", "--at", "2ep", "60ep"], "--at=60ep: the run ends there"),
        (["RUN", "--window", "1sa"], "less than a step of 4"),
        (
            ["RUN", "--batches", "x4000"],
            "x4000: steps of 16,000 samples are too long for the average",
        ),
        (["RUN", "--average", "--raw"], "one of --average, --anneal and --raw"),
        (["RUN", "--rates", "2"], "--rates 1 or 3"),
        (["RUN", "--recipe", "quadratic"], "name one of"),
    ],
)
def test_mistakes(parent: Path, tmp_path: Path, capsys, monkeypatch, arguments, words) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [str(parent) if each == "RUN" else each for each in arguments]
    assert main(["study", "critical-batch", *arguments]) == 2
    line = capsys.readouterr().err.rstrip("\n")
    assert words in line and "\n" not in line


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_a_run_to_the_page(parent: Path, tmp_path: Path, capsys) -> None:
    arguments = ["study", "critical-batch", str(parent), "--at", "25%", "--window", "20%"]
    arguments += ["--batches", "x2", "x16", "--folder", str(tmp_path / "f"), "--at-a-time", "2"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.index("a checkpoint 136.1%") < printed.index("started")
    record = read_record(tmp_path / "f" / "record.json")
    assert [row["batch"] for row in record.rows] == [8, 64]
    assert "took 1" in record.notes[-1] and "by its speed)" in record.notes[-1]
    (point,) = record.details["points"]
    assert point["samples"] == 512 and len(point["curves"]) >= 2
    assert point["learning_rates"] == pytest.approx([0.2, 0.4, 3.2])
    text = (tmp_path / "f" / "report.html").read_text()
    assert "Overhead against batch" in text and "Branches at 25%" in text
    assert main(arguments) == 0
    assert read_record(tmp_path / "f" / "record.json").rows == record.rows
