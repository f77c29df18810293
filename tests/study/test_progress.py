"""How far the jobs of a study are, and how long the rest will take."""

from __future__ import annotations

from pathlib import Path

import pytest

from largebatch.record import json_text
from largebatch.study.job import Job, Place
from largebatch.study.progress import Position, Progress
from largebatch.train.parse import parse


def place(folder: Path, *options: str, parent: int = 0) -> Place:
    found = Place(Job("a", parse(list(options))), folder)
    found.run.path.mkdir(parents=True)
    if parent:
        text = json_text({"checkpoint": "/x", "samples": parent})
        (found.run.path / "parent.json").write_text(text)
    return found


def seen(found: Place, samples: int, epoch: float) -> float:
    lines = [{"split": "train", "samples": samples, "epoch": epoch}, {"split": "val"}]
    found.run.metrics.write_text(
        "".join(json_text(line) + "\n" for line in lines) + '{"split": "tr'
    )
    return Position(found).share


@pytest.mark.parametrize(
    ("options", "parent", "share"),
    [
        (["--schedule.length=10ep"], 0, 0.1),
        (["--schedule.length=4000sa"], 0, 0.25),
        (["--schedule.length=10st", "--batch.size=200"], 0, 0.5),
        (["--schedule.length=1500sa"], 500, 0.5),
        (["--schedule.length=5ep", "--schedule.regime=steps", "--batch.size=64",
          "--batch.reference=32"], 0, 0.1),
    ],
)  # fmt: skip
def test_a_share_of_its_own_samples(tmp_path: Path, options, parent: int, share: float) -> None:
    found = place(tmp_path, *options, parent=parent)
    assert Position(found).share == 0
    assert seen(found, 1000, 1.0) == pytest.approx(share)


def test_the_time_left() -> None:
    progress = Progress(2)
    assert progress.left([(5.0, 0.0)], 3) == ""
    # 100 s each: 75 of one that runs, and three that wait, two at a time.
    assert progress.left([(25.0, 0.25)], 3) == "0:03:08"
    progress.ended(100.0)
    assert progress.left([(10.0, 0.0)], 1) == "0:01:35"


def test_lines_where_there_is_no_terminal(tmp_path: Path, capsys) -> None:
    progress = Progress(1)
    progress.show([], 0, 2)
    assert capsys.readouterr().out == "", "not at once"
    progress._next = 0.0
    progress.show([], 1, 2)
    assert capsys.readouterr().out == "[1/2] 0 running\n"
    progress.close()
