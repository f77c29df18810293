"""`largebatch lab` as a user meets it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import largebatch.lab
from largebatch.cli import main
from largebatch.lab import experiments
from largebatch.lab.experiment import Check, Experiment, Findings, Hall, Scale, agreed, spread
from largebatch.lab.perform import perform
from largebatch.lab.pictures import Series, heat, lines, over_seeds, scatter
from largebatch.record import read_record

COUNTED: list[tuple[bool, int]] = []


class Count(Experiment):
    """Counts how often it is measured."""

    lecture = "A lecture (Nobody)"
    claim = "one and one make two"
    source = "Whitehead and Russell 1910"
    minutes = 0.5

    def measure(self, scale: Scale) -> Findings:
        COUNTED.append((scale.quick, len(scale.seeds)))
        checks = [Check("1 + 1", "2", str(1 + 1), True, exact=True)]
        series = [Series("a", [1, 2, 3], [1, 4, 9]), over_seeds("b", [1, 2], [[1, 2], [3, 4]])]
        charts = [
            ("Lines", "note", lines("x", "y", series, log="xy", marks={"m": 2}, levels={"l": 3})),
            ("Points", "note", scatter("x", "y", series, log="xy")),
            ("Heat", "note", heat("x", "y", [1, 2], [1, 2], [[1, 2], [3, 4]])),
        ]
        return Findings(checks, [{"sum": 2}], charts, ["a note"])


class Unclear(Count):
    """One check that these seeds cannot tell."""

    def measure(self, scale: Scale) -> Findings:
        return Findings([Check("coin", "heads", spread([0, 1]), agreed([True, False]))], [{"n": 1}])


class Broken(Count):
    """Fails."""

    def measure(self, scale: Scale) -> Findings:
        raise RuntimeError("no such number")


class Nothing:
    """No experiment."""

    seeds = 1


@pytest.fixture
def hall(monkeypatch: pytest.MonkeyPatch) -> Hall:
    """Three experiments in the place of all."""
    monkeypatch.setattr(experiments, "_entries", {})
    monkeypatch.setitem(sys.modules, "counted", sys.modules[__name__])
    COUNTED.clear()
    for name, kind in {"count": Count, "broken*": Broken, "unclear": Unclear}.items():
        experiments.register(name)(kind)
    return experiments


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["lab", *arguments]) == 2
    printed = capsys.readouterr()
    line = printed.err.rstrip("\n")
    assert "\n" not in line and printed.out == ""
    return line


def test_one_experiment_is_printed_and_written(hall: Hall, tmp_path: Path, capsys) -> None:
    record, page = tmp_path / "new" / "a.json", tmp_path / "a.html"
    arguments = ["lab", "count", "--seeds=4", "--json", str(record), "-o", str(page)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    said = ["one and one make two", "as claimed      1 + 1: 2; here 2", "verdict: as claimed"]
    assert [printed.index(words) for words in said] == sorted(printed.index(w) for w in said)
    details = read_record(record).details
    assert (details["seeds"], details["quick"], details["verdict"]) == (4, False, "as claimed")
    assert COUNTED == [(False, 4)]
    assert "one and one make two" in page.read_text() and "Plotly.newPlot" in page.read_text()


def test_all_go_on_after_one_fails_and_are_measured_once(hall: Hall, tmp_path, capsys) -> None:
    folder = tmp_path / "lab"
    everything = ["lab", "--all", "--quick", "--folder", str(folder)]
    assert main(everything) == 1
    printed = capsys.readouterr()
    assert "broken*" in printed.err and "RuntimeError: no such number" in printed.err
    assert "no such number" in (folder / "broken.failed.txt").read_text()
    assert [row["experiment"] for row in read_record(folder / "lab.json").rows] == [
        "count",
        "unclear",
    ]
    assert 'href="count.html"' in (folder / "index.html").read_text()
    hall._entries.pop("broken*")
    assert main(everything) == 0
    assert "2 of 2 are done: read" in capsys.readouterr().out
    assert COUNTED == [(True, 2)]
    assert main(["lab", "--all", "--folder", str(folder)]) == 0  # of another size: measured anew
    assert COUNTED == [(True, 2), (False, 3)]
    rows = read_record(folder / "lab.json").rows
    assert [row["verdict"] for row in rows] == ["as claimed", "cannot tell with 3 seeds"]


def test_an_experiment_of_ones_own(hall: Hall, capsys) -> None:
    assert main(["lab", "counted:Count", "--quick"]) == 0
    assert "verdict: as claimed" in capsys.readouterr().out
    assert "TypeError" in refused(capsys, "counted:spread", "--quick")
    assert "is no largebatch.lab.Experiment" in refused(capsys, "counted:Nothing")


def test_mistakes_are_one_line(hall: Hall, capsys, tmp_path) -> None:
    assert "did you mean 'count'" in refused(capsys, "counts")
    assert "--list" in refused(capsys)
    assert "--seeds 0" in refused(capsys, "count", "--seeds=0")
    assert "--folder" in refused(capsys, "count", "--all")
    (tmp_path / "file").touch()
    assert "cannot be written" in refused(capsys, "--all", "--folder", str(tmp_path / "file"))
    assert COUNTED == []
    (tmp_path / "count.json").write_text("{")
    assert "count.json" in refused(capsys, "--all", "--folder", str(tmp_path))


def test_the_list_names_lecture_claim_and_minutes(hall: Hall, capsys) -> None:
    assert main(["lab", "--list"]) == 0
    printed = capsys.readouterr().out
    assert "A lecture (Nobody); 0.5 min" in printed and "one and one make two" in printed


class Drawn(Count):
    """Draws from torch's own generator."""

    def measure(self, scale: Scale) -> Findings:
        return Findings([Check("draw", "any", str(torch.rand(()).item()), None)], [{"n": 1}])


def test_the_same_scale_finds_the_same_and_disturbs_no_generator(hall: Hall) -> None:
    hall.register("drawn")(Drawn)
    torch.manual_seed(5)
    expected = torch.rand(2)[1]
    torch.manual_seed(5)
    torch.rand(1)
    first, again = (perform("drawn", quick=True)[0].checks for _ in range(2))
    assert first == again
    assert torch.rand(()) == expected


def test_the_example_of_the_method_card_runs(hall: Hall, capsys) -> None:
    card = (Path(largebatch.lab.__file__).parent / "README.md").read_text(encoding="utf-8")
    example = card.partition("```python\n")[2].partition("```")[0]
    exec(example, {**vars(largebatch.lab), "np": np, "lines": lines, "Series": Series})
    assert main(["lab", "two-coins", "--seeds=5"]) == 0
    assert "verdict: as claimed" in capsys.readouterr().out
