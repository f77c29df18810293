"""`evaluate.parts`: the held-out set's parts stand in the record, and change nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from largebatch._errors import UserError
from largebatch.processes import World
from largebatch.record import read_metrics
from largebatch.train import run
from largebatch.train.check import check
from largebatch.train.evaluate import part_begin, part_of, requests
from largebatch.train.parse import parse

COMMAND = [
    *("--recipe=digits", "--schedule.length=16st", "--data.limit=256", "--evaluate.every=8st"),
    *("--checkpoint.at=[]", "--ema.half_life=64sa"),
]


def lines(folder: Path, *more: str) -> list[dict]:
    run(parse([*COMMAND, f"--run.dir={folder}", *more]))
    return [line for line in read_metrics(folder / "metrics.jsonl") if line["split"] == "val"]


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize(("count", "parts", "batch"), [(355, 16, 32), (7, 7, 4), (10, 3, 100)])
def test_no_request_reaches_into_another_part(world_size, count, parts, batch) -> None:
    seen = []
    for rank in range(world_size):
        world = World(rank, world_size, rank, world_size)
        for request in requests(count, batch, world, parts=parts):
            places = request.positions
            seen += places.tolist()
            assert len(places) <= batch
            assert len({part_of(int(place), count, parts) for place in places}) == 1
    assert seen == list(range(count)), "every sample once, in order"
    begins = [part_begin(part, count, parts) for part in range(parts + 1)]
    assert max(np.diff(begins)) - min(np.diff(begins)) <= 1
    assert all(part_of(begin, count, parts) == n for n, begin in enumerate(begins[:-1]))


def test_parts_add_up_and_branches_of_any_batch_have_the_same(tmp_path: Path) -> None:
    plain, parted = lines(tmp_path / "a"), lines(tmp_path / "b", "--evaluate.parts=16")
    assert "loss_of_parts" not in plain[-1]
    for one, other in zip(plain, parted, strict=True):
        for head in ("", "ema_"):
            sums, weights = (np.array(other[f"{head}{key}_of_parts"]) for key in ("loss", "weight"))
            assert len(sums) == 16 and weights.sum() == 355 and weights.min() == 22
            assert sums.sum() / weights.sum() == pytest.approx(other[f"{head}loss"], rel=1e-12)
            assert other[f"{head}loss"] == pytest.approx(one[f"{head}loss"], rel=1e-6)
    summary = (tmp_path / "b" / "summary.json").read_text()
    assert "of_parts" not in summary, "a summary is of figures"
    wide = lines(tmp_path / "c", "--evaluate.parts=16", "--batch.size=128")
    assert wide[-1]["weight_of_parts"] == parted[-1]["weight_of_parts"]


def test_a_run_with_parts_goes_on(tmp_path: Path) -> None:
    """Its checkpoint holds the last validation, and that has a figure a part."""
    more = ("--evaluate.parts=16", "--checkpoint.every=8st")
    whole = lines(tmp_path, *more)
    (tmp_path / "summary.json").unlink()
    shutil.rmtree(tmp_path / "checkpoints" / "samples-000000000512")
    assert lines(tmp_path, *more) == whole


def test_none_are_refused() -> None:
    with pytest.raises(UserError, match=r"evaluate\.parts=0: at least 1"):
        check(parse([*COMMAND, "--evaluate.parts=0"]))
