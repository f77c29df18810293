"""Which batch on how many GPUs: closed forms, intervals, marked points, and the page."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from largebatch.cli import main
from largebatch.record import BenchmarkRecord, read_record, write_record
from largebatch.study.account import duration
from largebatch.study.choices import (
    Chances,
    choice_of,
    choices,
    fastest_batch,
    fastest_hours,
    front,
    marked,
)
from largebatch.study.convergence import Cell
from largebatch.study.hyperbola import NoHyperbola, fit_line, scatter_of_runs
from largebatch.study.need import Need
from largebatch.study.timing import StepTime, Timed, fit_timing

NEED = Need(4.3e7, 970.0, np.diag([1e12, 400.0]), 0.02, 1632, 67840)
TIME = StepTime(64, 2500.0, 0.03, 512, 65536, 0.05)


def test_the_closed_form_is_the_least_of_all_batches() -> None:
    found = choices(NEED, [TIME], range(64, 200_000, 64))
    best = min(found, key=lambda each: each.hours)
    assert best.batch == pytest.approx(fastest_batch(NEED, TIME), rel=0.01)
    assert best.hours == pytest.approx(fastest_hours(NEED, TIME), rel=1e-4)
    assert fastest_batch(NEED, TIME) == pytest.approx(math.sqrt(4.3e7 / 970 * 0.03 * 64 * 2500))


def test_intervals_hold_what_they_say() -> None:
    """Truths drawn as the errors say lie in the 90% interval of a run in about 90% of cases."""
    generator = np.random.default_rng(1)
    chance = Chances.of(NEED)
    held, batch = 0, 8192
    choice = choice_of(NEED, TIME, batch, chance)
    for _ in range(400):
        samples, steps = generator.multivariate_normal([NEED.samples, NEED.steps], NEED.covariance)
        run = (steps + samples / batch) * math.exp(NEED.scatter * generator.standard_normal())
        seconds = TIME.seconds(batch) * math.exp(TIME.error * generator.standard_normal())
        held += choice.both[0] <= run * seconds / 3600 <= choice.both[1]
    assert 0.85 <= held / 400 <= 0.95
    for low, high in (choice.statistics, choice.timing):
        assert choice.both[0] < low < choice.hours < high < choice.both[1]


@pytest.mark.parametrize("between", [0.0, 0.15])
def test_few_runs_foretell_a_run_at_another_batch(between: float) -> None:
    """Six batches of three runs, which scatter by 20%: the interval holds a new run in 9 of 10.

    Batches lie off the line as well, by ``between``: a new one does too.
    """
    generator = np.random.default_rng(2)
    batches, exact = (16, 32, 64, 128, 256, 512), StepTime(1, 1000.0, 0.0, 1, 1024, 0.0)

    def runs(batch: int, many: int) -> tuple[float, ...]:
        off = math.exp(between * generator.standard_normal())
        each = off * (4000 + 60 * batch) * np.exp(0.2 * generator.standard_normal(many))
        return tuple(each.tolist())

    held, studies = 0, 0
    for _ in range(300):
        cells = [Cell(batch, runs(batch, 3)) for batch in batches]
        try:
            line = fit_line(cells)
        except NoHyperbola:  # too few runs to see that need grows: nothing is foretold
            continue
        scatter, freedom = scatter_of_runs(cells, line)
        need = Need(line.samples, line.steps, np.array(line.covariance), scatter, 16, 512, freedom)
        low, high = choice_of(need, exact, 96, Chances.of(need)).both
        held += low <= runs(96, 1)[0] / 1000 / 3600 <= high
        studies += 1
    assert studies > 250 and 0.86 <= held / studies <= 0.95


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *((0.2034, "0.2 s"), (9.94, "9.9 s"), (40.0, "40 s"), (119.4, "119 s"), (119.6, "2 min")),
        *((240.0, "4 min"), (7169.0, "119 min"), (7171.0, "2.0 h"), (9000.0, "2.5 h")),
    ],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_marked_points_and_the_front() -> None:
    times = [StepTime(ranks, 2500.0, 0.03, 512, 65536, 0.05) for ranks in (8, 64, 512)]
    found = choices(NEED, times, price=2.0, watts=700.0)
    points = marked(found, 0.1)
    fastest, cheapest, third = points.values()
    assert fastest.hours == min(each.hours for each in found) and fastest.ranks == 512
    assert cheapest.cost == min(each.cost for each in found) and cheapest.ranks == 8
    assert third.cost <= 1.1 * cheapest.cost and third.hours <= cheapest.hours
    kept = front(found)
    for choice in found:
        assert any(k.hours <= choice.hours and k.cost <= choice.cost for k in kept)
    assert [each.hours for each in kept] == sorted(each.hours for each in kept)
    assert cheapest.cost == pytest.approx(cheapest.hours * 8 * 2.0)
    assert cheapest.kilowatt_hours == pytest.approx(cheapest.hours * 8 * 0.7)
    assert any(each.extrapolated for each in found)
    assert all(each.extrapolated == (not 1632 <= each.batch <= 65536) for each in found)


def test_the_time_of_a_step() -> None:
    timed = [
        Timed(ranks, batch, batch / (ranks * 100.0) + 0.02 * ranks)
        for ranks in (1, 2)
        for batch in (16, 32, 64)
    ]
    one, two, four = fit_timing(timed, [4])
    assert (one.rate, one.fixed) == (pytest.approx(100), pytest.approx(0.02))
    assert (two.rate, two.fixed) == (pytest.approx(100), pytest.approx(0.04))
    assert four.fixed == pytest.approx(0.04) and not four.measured(64) and two.measured(64)


def scaling(path: Path) -> Path:
    rows: list[dict[str, Any]] = []
    for ranks in (1, 2):
        for batch in (16, 64):
            rate = batch * ranks / (batch / 500 + 0.01 * ranks)
            row = {"ranks": ranks, "global batch": batch * ranks, "images/s": rate}
            rows.append({**row, "contender": "largebatch", "p5": 0.95 * rate, "p95": 1.05 * rate})
            rows.append({**row, "contender": "PyTorch DDP"})
    write_record(path, BenchmarkRecord("scaling", "", rows))
    return path


@pytest.fixture
def record(tmp_path: Path, capsys) -> Path:
    table = tmp_path / "mine.csv"
    lines = [
        f"{b},{seed},{2000 + 20 * b + 40 * seed}" for b in (8, 16, 32, 64, 128) for seed in range(3)
    ]
    table.write_text("\n".join(["batch,seed,samples", *lines]))
    path = tmp_path / "need.json"
    assert main(["study", "steps-to-target", "--from", str(table), "--json", str(path)]) == 0
    return path


def decide(tmp_path: Path, record: Path, *more: str) -> Path:
    arguments = ["study", "decision", "--from", str(record), "--json", str(tmp_path / "d.json")]
    arguments += ["--scaling", str(scaling(tmp_path / "s.json")), "--gpus", "1", "2", "8"]
    assert main([*arguments, "--html", str(tmp_path / "d.html"), "--price", "2.5", *more]) == 0
    return tmp_path / "d.html"


def test_a_page_is_written_from_two_records(tmp_path: Path, record: Path, capsys) -> None:
    text = decide(tmp_path, record, "--watts", "300").read_text()
    found = read_record(tmp_path / "d.json")
    assert [row["point"] for row in found.rows][:2] == ["fastest", "cheapest"]
    for row in found.rows:
        assert str(row["hours"]) in text and row["run"] in text
    assert {each["ranks"] for each in found.details["choices"]} == {1, 2, 8}
    assert all(each["extrapolated"] for each in found.details["choices"] if each["ranks"] == 8)
    assert "fewest hours at batch sqrt(" in text
    outside = text.replace("http://www.w3.org", "")
    assert "http://" not in outside and "https://" not in outside


def test_rates_follow_the_runs() -> None:
    """Between two batches as a power of the batch, so that a rule of linear or root is kept."""
    need = replace(NEED, learning_rates={64: 0.4, 16: 0.1, 32: 0.2, 256: 0.8})
    assert need.learning_rate(48) == pytest.approx(0.3)
    assert need.learning_rate(128) == pytest.approx(0.4 * math.sqrt(2))
    assert need.learning_rate(8) == pytest.approx(0.1)
    assert need.learning_rate(4096) == pytest.approx(0.8)
    assert NEED.learning_rate(48) is None
    assert [each.learning_rate for each in choices(need, [TIME], [64, 256])] == [
        pytest.approx(0.4),
        pytest.approx(0.8),
    ]


def test_the_page_says_at_which_rate(tmp_path: Path, record: Path, capsys) -> None:
    """Where the study knows: a table of published runs has no rates, nor has a batch without."""
    assert "learning rate of" not in decide(tmp_path, record).read_text()
    assert "learning rate" not in read_record(tmp_path / "d.json").rows[0]
    found = read_record(record)
    found.details["tasks"][0]["learning_rates"] = [0.8, None, 1.6, 2.4, 3.2]
    write_record(record, found)
    text = decide(tmp_path, record, "--batches=[16,32]").read_text()
    rates = {16: 1.131, 32: 1.6}
    for row in read_record(tmp_path / "d.json").rows[:3]:  # the cards
        assert row["learning rate"] == rates[row["batch"]]
        assert f"at a learning rate of {row['learning rate']}" in text


def test_branches_decide_as_well(tmp_path: Path, record: Path, capsys) -> None:
    point = {"at": "25%", "own": 32, "B20": 64.0, "low": 40.0, "high": 100.0, "batches": [64, 128]}
    later = {**point, "at": "50%", "B20": 90.0}
    details = {"points": [later, point], "total": 33_000}
    write_record(record, BenchmarkRecord("critical-batch", "", [], details=details))
    decide(tmp_path, record)
    printed = capsys.readouterr().out
    assert "branches at 25%: at least 30,000 samples and 93.75 steps, critical batch 320" in printed
    assert "learning rate" not in read_record(tmp_path / "d.json").rows[0]
    point["learning_rates"] = [0.1, 0.2, 0.3]
    write_record(record, BenchmarkRecord("critical-batch", "", [], details=details))
    decide(tmp_path, record, "--batches=[32,64,128]")
    rates = {32: 0.1, 64: 0.2, 128: 0.3}
    for row in read_record(tmp_path / "d.json").rows[:3]:
        assert row["learning rate"] == rates[row["batch"]]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "one of --scaling FILE and --rate"),
        (["--rate", "0"], "--rate=0.0"),
        (["--rate", "10", "--fixed", "-1"], "--fixed=-1.0"),
        (["--rate", "10", "--gpus", "0"], "from 1"),
        (["--rate", "10", "--within", "3ep"], "--within=3ep: a share"),
        (["--rate", "10", "--task", "other"], "--task=other"),
        (["--scaling", "need.json"], "expected one of largebatch bench"),
    ],
)
def test_mistakes(tmp_path: Path, record: Path, capsys, monkeypatch, more, words) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["study", "decision", "--from", str(record), *more]) == 2
    line = capsys.readouterr().err.rstrip("\n")
    assert words in line and "\n" not in line
    other = scaling(tmp_path / "s.json")
    assert main(["study", "decision", "--from", str(other), "--rate", "3"]) == 2
    assert "expected steps-to-target or critical-batch" in capsys.readouterr().err


@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_in_a_browser(tmp_path: Path, record: Path, capsys, browser, width: int) -> None:
    """No error, no request, nothing beyond the side, and the figures of the record."""
    page = decide(tmp_path, record)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(page.as_uri())
    assert browser.get_log("browser") == []
    events = [json.loads(each["message"])["message"] for each in browser.get_log("performance")]
    asked = [
        each["params"]["request"]["url"]
        for each in events
        if each["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if url.startswith("http")] == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    details = read_record(tmp_path / "d.json").details
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('.js-plotly-plot')].map(chart => chart.data.map("
        "trace => ({name: trace.name, x: Array.from(trace.x), y: Array.from(trace.y)})))"
    )
    assert len(drawn) == 3
    shown = {
        (int(trace["name"].split()[0]), x): y
        for trace in drawn[0]
        if trace["name"].endswith(("GPU", "GPUs"))
        for x, y in zip(trace["x"], trace["y"], strict=True)
    }
    expected = {(each["ranks"], each["batch"]): each["hours"] for each in details["choices"]}
    assert shown == expected
    cards = browser.execute_script(
        "return [...document.querySelectorAll('.figures dd:not(.more)')].map(e => e.innerText)"
    )
    assert cards == [
        f"batch {each['batch']:,} on {each['ranks']} GPU{'s' * (each['ranks'] > 1)}"
        for each in details["points"].values()
    ]
