"""`study sweep` and `study generalization-gap`: rows, maps, equal budgets, paired tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from largebatch._errors import UserError
from largebatch.cli import main
from largebatch.record import BenchmarkRecord, read_record
from largebatch.study.generalization_gap import GeneralizationGap, paired
from largebatch.study.search import next_exponents
from largebatch.study.sweep import Sweep
from largebatch.train import Outcome

SHORT = ["--data.limit=64", "--schedule.length=2st", "--batch.size=16"]
SWEEPS = sorted((Path(__file__).parents[2] / "benchmarks" / "sweeps").glob("*.yaml"))


def test_keys_over_values_make_a_map(tmp_path: Path, capsys) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "over: {optim.lr: [0.01, 0.1], optim.weight_decay: [0.0]}\n"
        "base: [--data.limit=64, --schedule.length=2st]\nseeds: [0]\n"
    )
    arguments = ["study", "sweep", "--options", str(file), "--folder", str(tmp_path / "runs")]
    assert main([*arguments, "--batch.size=16", "--at-a-time", "2"]) == 0
    record = read_record(tmp_path / "runs" / "record.json")
    assert [row["cell"] for row in record.rows] == [
        "lr 0.01, weight_decay 0.0",
        "lr 0.1, weight_decay 0.0",
    ]
    assert record.rows[0]["top1"] <= 100 and record.formula.endswith("top1, in %")
    page = (tmp_path / "runs" / "report.html").read_text()
    assert '"type":"heatmap"' in page and "http://" not in page.replace("http://www.w3.org", "")
    config = (tmp_path / "runs" / "lr-0.1-weight_decay-0.0-0" / "config.yaml").read_text()
    assert "size: 16" in config and "lr: 0.1" in config


def test_the_page_of_named_rows_shows_every_seed() -> None:
    study = GeneralizationGap(["--recipe=hoffer-f1-mnist-small"], seeds=[0, 1])
    rows: list[dict[str, Any]] = [
        {"training": "small batch", "top1": 98.5, "all": [98.4, 98.6]},
        {"training": "large batch", "top1": 98.0, "all": [98.0]},
        {"training": "+ ghosts", "top1": "lost", "all": []},
    ]
    record = BenchmarkRecord("gap", "", rows, details={"figure": "top1", "percent": True})
    ((title, _, figure),) = study.charts(record)
    seeds, mean = figure.data
    assert title == "top1, %"
    assert list(zip(seeds.y, seeds.x, strict=True)) == [
        ("small batch", 98.4),
        ("small batch", 98.6),
        ("large batch", 98.0),
    ]
    assert (mean.x, mean.y) == ((98.5, 98.0), ("small batch", "large batch"))


def test_a_line_for_every_row_over_batches() -> None:
    batches = [16, 64, 256]
    study = Sweep(over={"batch.size": batches}, cells={"a": [], "b": []}, base=SHORT[:2], seeds=[0])
    rows = [{"cell": cell, "top1": 90.0 + at, "sd": None} for at, cell in enumerate(study.cells)]
    places = [study.places[cell] for cell in study.cells]
    details = {"figure": "top1", "percent": True, "keys": ["batch.size"], "places": places}
    ((_, _, figure),) = study.charts(BenchmarkRecord("sweep", "", rows, details=details))
    assert {line.name: list(zip(line.x, line.y, strict=True)) for line in figure.data} == {
        "a": [(16, 90.0), (64, 91.0), (256, 92.0)],
        "b": [(16, 93.0), (64, 94.0), (256, 95.0)],
    }
    assert figure.layout.xaxis.type == "log" and list(figure.layout.xaxis.tickvals) == batches


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(f, id=f.stem, marks=() if "fixed" in f.stem else pytest.mark.slow)
        for f in SWEEPS
    ],
)
def test_the_sweeps_of_the_benchmarks_can_be_asked(file: Path, tmp_path: Path, capsys) -> None:
    folder = str(tmp_path / "runs")
    arguments = ["study", "sweep", "--options", str(file), "--folder", folder, "--commands"]
    assert main([*arguments, f"--data.root={tmp_path}"]) == 0
    jobs = len((tmp_path / "runs" / "jobs" / "commands.txt").read_text().splitlines())
    assert f"{jobs} of {jobs} jobs to do" in capsys.readouterr().out
    expected = {"norms_f1_mnist": 42, "norms_cifar10": 9, "fixed_classifier_mnist": 9}
    expected |= {"simclr_digits": 12, "simclr_cifar10": 12, "bert_shakespeare": 54}
    assert jobs == expected.get(file.stem, 36)


def finished(name: str, figure: str, value: float) -> Outcome:
    return Outcome(Path(name), True, 1, 1, {"headline": figure, "name": name, figure: value})


@pytest.mark.slow
def test_every_cell_has_the_same_budget() -> None:
    sweep = Sweep(
        cells={"a": ["--optim.lr=0.1"], "b": ["--optim.lr=0.2"]},
        base=SHORT,
        seeds=[0, 1],
        tune="optim.lr",
        budget=5,
        figure="top1",
    )
    done: dict[str, Outcome] = {}
    best = {"a": 0.2, "b": 0.2}  # once and none above where each begins
    while waiting := [job for job in sweep.jobs(done) if job.name not in done]:
        for job in waiting:
            rate = job.config.optim.lr
            score = 1 / (1 + abs(rate - best[job.name[0]]))
            done[job.name] = finished(job.name, "top1", score)
    tuned = [name for name in done if "tune" in name]
    assert len(tuned) == 10 and len(done) == 14
    rows = sweep.conclude(done).rows
    assert [row["optim.lr"] for row in rows] == [0.2, 0.2]
    assert not any(row["on the edge"] for row in rows)


def test_options_are_parsed_once_however_often_a_study_is_asked(monkeypatch) -> None:
    sweep = Sweep(cells={"a": ["--optim.lr=0.3"]}, base=SHORT, tune="optim.lr", budget=5)
    first = list(sweep.jobs({}))
    monkeypatch.setattr("largebatch.train.parse.parse", None)
    assert list(sweep.jobs({})) == first and len(first) == 3


def test_a_search_goes_on_until_the_best_has_neighbours() -> None:
    values: dict[int, float] = {}
    while asked := next_exponents(values, 9):
        values |= {exponent: -abs(exponent - 5.2) for exponent in asked}
    best = max(values, key=lambda exponent: values[exponent])
    assert len(values) == 9 and best == 5 and {4, 6} <= set(values)


def test_the_gap_and_its_remedies() -> None:
    base = ["--recipe=hoffer-f1-mnist-small", "--data.root=/d"]
    study = GeneralizationGap(base, large=4096, part=None, seeds=[0, 1, 2])
    configs = {job.name: job.config for job in study.jobs({})}
    assert len(configs) == 15
    large, rate = configs["large-batch-0"], configs["rate-by-the-root-0"]
    ghosts, regime = configs["ghosts-0"], configs["regime-1"]
    assert large.batch.size == 4096 and large.optim.scaling == "none"
    assert rate.optim.scaling == "sqrt" and rate.batch.reference == 128
    assert rate.norm.kind == "batch" and ghosts.norm.ghost_size == 128
    assert regime.schedule.regime == "steps" and str(regime.schedule.length) == "50ep"
    from largebatch.schedule import Duration

    short = GeneralizationGap(base, large=4096, part=Duration.parse("20%"), seeds=[0])
    (last,) = [job.config for job in short.jobs({}) if job.name == "regime-0"]
    assert str(last.schedule.length) == "10ep"
    assert [str(each) for each in last.schedule.milestones] == ["2ep", "4ep", "6ep"]
    done = {}
    for number, cell in enumerate(study.cells):
        for seed in study.seeds:
            name = study.job_name(cell, seed)
            done[name] = finished(name, "top1", 0.98 - 0.01 * number + 0.001 * seed * (number + 1))
    rows = study.conclude(done).rows
    assert rows[0]["gap"] == 0 and "p" not in rows[0]
    assert rows[1]["gap"] > 0 and 0 < rows[1]["p"] < 0.05


def test_seeds_are_compared_with_themselves_where_runs_were_lost() -> None:
    """Two rows that lost one run each have as many runs left, but not of the same seeds."""
    study = GeneralizationGap(["--recipe=hoffer-f1-mnist-small"], seeds=[0, 1, 2])
    done = {}
    for cell in study.cells:
        for seed in study.seeds:
            name = study.job_name(cell, seed)
            done[name] = finished(name, "top1", 0.9 - 0.01 * seed)
    lost = Outcome(Path("x"), False, 0, 0, lost="diverged")
    done["small-batch-0"] = done["ghosts-2"] = done["regime-1"] = done["regime-2"] = lost
    for seed, value in ((0, 0.5), (1, 0.8)):
        done[f"ghosts-{seed}"] = finished(f"ghosts-{seed}", "top1", value)
    for seed, value in ((1, 0.88), (2, 0.85)):
        done[f"large-batch-{seed}"] = finished(f"large-batch-{seed}", "top1", value)
    rows = {row["training"]: row for row in study.conclude(done).rows}
    assert rows["+ ghosts"]["gap"] == pytest.approx(0.09) and rows["+ ghosts"]["p"] is None
    assert rows["large batch"]["gap"] == pytest.approx(0.02)
    assert rows["large batch"]["p"] == pytest.approx(paired([0.89, 0.88], [0.88, 0.85]), abs=0.01)
    assert "gap" not in rows["+ regime"]  # seed 0 alone is left, which the small batch has lost


def test_a_figure_that_runs_do_not_have_is_told_after_the_first() -> None:
    sweep = Sweep(over={"optim.lr": [0.1, 0.2]}, base=SHORT, figure="zzz")
    first = next(iter(sweep.jobs({})))
    with pytest.raises(UserError, match=r"figure=zzz: .* there are"):
        sweep.jobs({first.name: finished(first.name, "top1", 0.9)})


def test_a_paired_test() -> None:
    assert paired([1.0, 2.0, 3.0], [0.5, 1.7, 2.2]) == pytest.approx(0.0669, rel=0.01)
    assert paired([1.0, 2.0], [0.0, 1.0]) is None and paired([1.0], [2.0]) is None
