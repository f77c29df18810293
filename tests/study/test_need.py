"""What a target needs, from records as studies write them and from damaged ones."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from largebatch.cli import main
from largebatch.record import BenchmarkRecord, read_record, write_record
from largebatch.study.need import read_need

TARGETS: dict[str, Any] = {
    "task": "x",
    "samples": 1.0,
    "batches": [16, 32, 64],
    "learning_rates": [0.1, 0.2, None],
    "line": [2000.0, 20.0],
    "covariance": [[400.0, -2.0], [-2.0, 0.04]],
    "scatter": 0.05,
    "freedom": 4,
}
BRANCHES: dict[str, Any] = {
    "at": "25%",
    "own": 4,
    "B20": 20.0,
    "low": 10.0,
    "high": 40.0,
    "batches": [8, 16, 32],
    "learning_rates": [0.1, 0.2, 0.4, 0.8],
}
WRONG: list[Any] = [None, "x", "1", True, -1, 0, math.nan, math.inf, 1e308, 1e-308, {}]
WRONG += [[], [1], [0, 0], [-1, -1]]


def write(path: Path, detail: dict[str, Any], total: Any = 2000) -> Path:
    if "task" in detail:
        record = BenchmarkRecord("steps-to-target", "", [], details={"tasks": [detail]})
    else:
        details = {"points": [detail], "total": total}
        record = BenchmarkRecord("critical-batch", "", [], details=details)
    path.write_text(json.dumps(asdict(record)))  # with NaN and Infinity, as others may write them
    return path


def decided(path: Path, capsys, *more: str) -> tuple[int, str]:
    arguments = ["study", "decision", "--from", str(path), "--rate=10", "--fixed=2", *more]
    code = main([*arguments, "--gpus=[1,4]", "--json", str(path.with_suffix(".out"))])
    return code, capsys.readouterr().err.rstrip("\n")


def test_records_are_read(tmp_path: Path) -> None:
    need, name = read_need(write(tmp_path / "a.json", TARGETS))
    assert (name, need.critical, need.freedom) == ("x", 100.0, 4)
    assert need.learning_rates == {16: 0.1, 32: 0.2} and need.remarks == ()
    need, name = read_need(write(tmp_path / "b.json", BRANCHES))
    assert name == "branches at 25%" and need.critical == pytest.approx(100)
    assert need.samples + 4 * need.steps == pytest.approx(2000)
    assert need.learning_rates[4] == 0.1 and need.learning_rates[32] == 0.8


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
@pytest.mark.parametrize("detail", [TARGETS, BRANCHES], ids=["targets", "branches"])
def test_damaged_records_are_refused_or_read_as_numbers(
    tmp_path: Path, capsys, detail: dict[str, Any], wrong: Any
) -> None:
    """Every field in turn, with a value that no study writes there."""
    for key in (*detail, "total"):
        found = copy.deepcopy(detail)
        if key in detail:
            found[key] = wrong
        path = write(tmp_path / "a.json", found, wrong if key == "total" else 2000)
        code, said = decided(path, capsys)
        assert code in (0, 2) and "\n" not in said, (key, said)
        if code == 2:
            assert str(path) in said or "--task" in said, (key, said)
            continue
        record = read_record(path.with_suffix(".out"))  # which refuses what is no number
        hours = [each["hours"] for each in record.details["choices"]]
        assert all(0 < each < math.inf for each in hours), key


@pytest.mark.parametrize("detail", [TARGETS, BRANCHES], ids=["targets", "branches"])
def test_absent_fields_are_named(tmp_path: Path, capsys, detail: dict[str, Any]) -> None:
    free = {"learning_rates", "freedom", "low", "high", "at", "task", "line", "B20"}
    for key in detail.keys() - free:
        path = write(tmp_path / "a.json", {k: v for k, v in detail.items() if k != key})
        code, said = decided(path, capsys)
        assert code == 2 and f"{key}" in said and "writes the record again" in said


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("line", [659, 1e-300], "line: 1e-300"),
        ("line", [1e20, 1e-10], "no critical batch"),
        ("freedom", 0.5, "a whole number"),
        ("scatter", 1e6, "scatter: 1000000.0"),
        ("learning_rates", [1, 2], "one for each of 3 batches"),
        ("learning_rates", [1, 2, -1], "learning_rates: -1"),
        ("covariance", [[1]], "covariance"),
        ("covariance", [[-1, 0], [0, -1]], "not one of samples and steps"),
        ("covariance", [[1, 5], [-5, 1]], "not one of samples and steps"),
        ("batches", [-4, 16], "batches: -4"),
    ],
)
def test_values_that_contradict(tmp_path: Path, capsys, key: str, value: Any, words: str) -> None:
    code, said = decided(write(tmp_path / "a.json", TARGETS | {key: value}), capsys)
    assert code == 2 and words in said, said


def test_limits_the_wrong_way_round(tmp_path: Path, capsys) -> None:
    code, said = decided(write(tmp_path / "a.json", BRANCHES | {"low": 30, "high": 4}), capsys)
    assert code == 2 and "low: 30: a number from" in said


@pytest.mark.parametrize("open_", [{"high": None}, {"low": None}, {"low": None, "high": None}])
def test_an_interval_with_an_open_end_is_no_certainty(
    tmp_path: Path, capsys, open_: dict[str, None]
) -> None:
    path = write(tmp_path / "a.json", BRANCHES | open_)
    code, _ = decided(path, capsys, "--html", str(tmp_path / "a.html"))
    record = read_record(path.with_suffix(".out"))
    assert code == 0 and {row["run"] for row in record.rows} == {"not known"}
    assert {row["statistics"] for row in record.rows} == {"not known"}
    assert any("open end" in note for note in record.notes)
    text = (tmp_path / "a.html").read_text()
    assert "how surely is not known" in text and "(90%)" not in text


def test_a_line_that_does_not_fit_is_told(tmp_path: Path, capsys) -> None:
    record = read_record(write(tmp_path / "a.json", TARGETS))
    record.rows = [{"task": "x", "verdict": "line does not fit"}]
    write_record(tmp_path / "a.json", record)
    decided(tmp_path / "a.json", capsys)
    assert any("does not fit" in note for note in read_record(tmp_path / "a.out").notes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "no mapping"),
        ('{"name": "x", "formula": "", "rows": [], "details": []}', "details: no mapping"),
        ('{"name": "x", "formula": "", "rows": [], "notes": [1]}', "notes are no list of texts"),
        ('{"name": "x", "rows": []}', "formula is missing"),
        ('{"name": 3, "formula": "", "rows": []}', "name is no text"),
        ('{"name": "x", "formula": "", "rows": [], "more": 1}', "unknown key 'more'"),
    ],
)
def test_no_records(tmp_path: Path, capsys, text: str, words: str) -> None:
    (tmp_path / "a.json").write_text(text)
    code, said = decided(tmp_path / "a.json", capsys)
    assert code == 2 and f"not a benchmark record ({words})" in said


@pytest.mark.parametrize(
    "row",
    [
        {"images/s": 10.0, "global batch": 8},
        {"images/s": 10.0, "global batch": 8, "ranks": 0},
        {"images/s": 10.0, "global batch": 8, "ranks": "x"},
        {"images/s": 10.0, "global batch": 8.5, "ranks": 1},
        {"images/s": -1.0, "global batch": 8, "ranks": 1},
        {"step_seconds": 0.0, "global_batch": 8, "ranks": 1},
    ],
)
def test_damaged_step_times(tmp_path: Path, capsys, row: dict[str, Any]) -> None:
    path = write(tmp_path / "a.json", TARGETS)
    write_record(tmp_path / "s.json", BenchmarkRecord("scaling", "", [row]))
    arguments = ["study", "decision", "--from", str(path), "--scaling", str(tmp_path / "s.json")]
    assert main(arguments) == 2
    assert "measure or plan it again" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more",
    [["--rate=1e-320"], ["--rate=1e308", "--fixed=1e308"], ["--fixed=1e300"], ["--watts=0"]],
)
def test_figures_beyond_all_machines(tmp_path: Path, capsys, more: list[str]) -> None:
    code, said = decided(write(tmp_path / "a.json", TARGETS), capsys, *more)
    assert code == 2 and "10^" in said
