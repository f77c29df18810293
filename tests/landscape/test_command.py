"""`largebatch landscape` of small runs, in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from largebatch.cli import main
from largebatch.landscape.judge import Judge
from largebatch.record import read_record

AROUND = ["--pictures", "line", "plane", "smooth", "--points=3", "--draws=2", "--samples=12"]
Make = Callable[..., Path]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_is_drawn_and_what_is_there_is_only_read(make_run: Make, monkeypatch) -> None:
    make_run("a")
    assert main(["landscape", "a", *AROUND]) == 0
    folder = Path("landscapes/a")
    first, record = bytes_of(folder), read_record(folder / "record.json")
    line, plane = lines(folder / "line.jsonl"), lines(folder / "plane.jsonl")
    own = lines(folder / "runs.jsonl")[0]
    assert [point["at"] for point in line] == [[-1.0], [0.0], [1.0]]
    assert line[1] == own | {"at": [0.0]} and plane[4] == own | {"at": [0.0, 0.0]}
    # The plane's first direction is the line's.
    assert [plane[k]["loss"] for k in (1, 7)] == [line[k]["loss"] for k in (0, 2)]
    smooth = lines(folder / "smooth.jsonl")
    assert [point["loss"] for point in smooth[:3]] == [point["loss"] for point in line]
    assert all(point["error"] > 0 for point in smooth[3:])
    assert [row["points"] for row in record.rows] == [3, 9, 9]
    assert "Loss in a plane" in (folder / "report.html").read_text(encoding="utf-8")

    (folder / "plane.jsonl").write_bytes(first["plane.jsonl"][:-7])  # killed within a line
    (folder / "smooth.jsonl").unlink()
    assert main(["landscape", "a", *AROUND]) == 0
    assert bytes_of(folder) == first

    def measured_again(*_: object) -> None:
        raise AssertionError("a finished point is measured again")

    monkeypatch.setattr(Judge, "__call__", measured_again)
    assert main(["landscape", "a", *AROUND]) == 0
    assert read_record(folder / "record.json").rows == record.rows


def test_another_seed_draws_other_directions(make_run: Make) -> None:
    make_run("a")
    for seed in (0, 1):
        options = ["--pictures=line", "--points=2", f"--seed={seed}", f"--folder=s{seed}"]
        assert main(["landscape", "a", *options]) == 0
    assert lines(Path("s0/line.jsonl")) != lines(Path("s1/line.jsonl"))
    assert lines(Path("s0/runs.jsonl")) == lines(Path("s1/runs.jsonl"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["nowhere"], "nowhere: neither a run directory nor a checkpoint of one"),
        (["open"], "open: this run is not finished"),
        (["a", "other"], "another model than a: model.name is c3, there c1"),
        (["a", "a", "a"], "name one run, or two"),
        (["a", "--pictures=bezier"], "of one run there are line, plane, smooth"),
        (["a", "b", "--pictures=plane"], "of two runs there are line, bezier, polychain"),
        (["a", "b", "--norm-statistics=as-trained"], "take recomputed or interpolated"),
        (["a", "--norm-statistics=interpolated"], "between two runs"),
        (["a", "b", "--norm-statistics=interpolated"], "have none to interpolate"),
        (["a", "--points=1"], "--points 1: 2 or more"),
        (["a", "--extent=0"], "--extent 0.0: above 0"),
        (["a", "--data.root=gone"], "is not there"),
        (["a", "b", "--length=soon", "--nproc=2"], "--length soon"),
        (["a", "--nproc=0"], "--nproc 0: above 0"),
        (["a", "--what"], "unrecognized arguments: --what"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(make_run: Make, capsys, options, told) -> None:
    runs = {"a": {}, "b": {"seed": 1}, "open": {"finished": False}, "other": {"model": "c3"}}
    for name in runs.keys() & set(options):
        make_run(name, **runs[name])
    assert main(["landscape", *options]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
    assert not Path("landscapes").exists()


def test_other_settings_and_damage_are_refused(make_run: Make, capsys) -> None:
    make_run("a")
    small = ["landscape", "a", "--pictures=line", "--folder=f"]
    assert main([*small, "--points=3"]) == 0
    capsys.readouterr()
    assert main([*small, "--points=4"]) == 2
    assert "its points are of --points 3, not 4; take another folder" in capsys.readouterr().err
    make_run("a", seed=5)  # trained anew since
    assert main([*small, "--points=3"]) == 2
    assert "its points are of runs" in capsys.readouterr().err
    make_run("a")
    Path("f/line.jsonl").write_text("{}\n")
    assert main([*small, "--points=3"]) == 2
    assert "line 1 is damaged; delete the file" in capsys.readouterr().err
