"""Steps that are timed: those of a run, which writes its metrics."""

from __future__ import annotations

from pathlib import Path

import torch

from largebatch.bench.throughput import trainer
from largebatch.processes import World
from largebatch.record import read_metrics
from largebatch.train.parse import parse


def test_our_steps_write_metrics_where_a_folder_is_given(tmp_path: Path) -> None:
    config = parse(["--recipe=digits", "--batch.size=64", "--telemetry.every=1st"])
    ours = trainer("ours", config, World(), torch.device("cpu"), tmp_path)
    for _ in range(3):
        ours.begin()
        ours.step()
        ours.end()
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line["split"] == "train"]
    assert [line["samples"] for line in lines][:1] == [64]
    assert ours.phases[0]["compute"] > 0
