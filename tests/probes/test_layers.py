"""layers.jsonl: one line a stretch of the run, of the tensors that adapt."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from largebatch.optim import LAMB, LARS
from largebatch.probes import LayerRecord
from largebatch.record import read_metrics
from largebatch.schedule import Clock, Duration, Every, Step
from largebatch.schedule.plan import Phase

MOMENT: Any = None  # the record looks at nothing of it


def steps(count: int, size: int = 50) -> list[Step]:
    phase = Phase(size=size)
    return [Step(i * size, size, i * size // 200, i * size % 200, phase) for i in range(count)]


@pytest.mark.parametrize("kind", [LARS, LAMB])
def test_lines_hold_what_the_step_found(kind: type, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
    optimizer = kind(model.parameters(), 0.1, weight_decay=0.01, exclude="one_dimensional")
    optimizer.param_groups[0]["split"] = 3
    clock = Clock(epoch_samples=200, total_samples=1000)
    path = tmp_path / "layers.jsonl"

    def record(samples: int) -> LayerRecord:
        every = Every(Duration.parse("10%"), clock)
        layers = LayerRecord(optimizer, model, path, every, clock.epoch_samples)
        layers.begin(samples, samples // 50)
        return layers

    layers, ratios = record(0), []
    for number, step in enumerate(steps(10), 1):
        model(torch.randn(4, 6)).square().sum().backward()
        weight = model[0].weight.detach()[2:4].double().norm()
        optimizer.step()
        if layers.due(step, number):
            found = layers.measure(MOMENT)
            optimizer.zero_grad()
            layers.write(step, number, {name: row.tolist() for name, row in found.items()})
            ratios.append(float(weight))
    lines = read_metrics(path)
    assert [line["samples"] for line in lines] == [100, 200, 300, 400, 500]
    assert [line["epoch"] for line in lines] == [0.5, 1.0, 1.5, 2.0, 2.5]
    names = [f"{layer}.weight[{number}]" for layer in range(2) for number in range(3)]
    for line, weight in zip(lines, ratios, strict=True):
        assert list(line["layers"]) == names
        norm, update, ratio = line["layers"]["0.weight[1]"]
        assert norm == pytest.approx(weight, rel=1e-6)
        expected = 0.001 * norm / (update + 0.01 * norm) if kind is LARS else norm / update
        assert ratio == pytest.approx(expected, rel=1e-6)
    record(250)  # the run goes on there
    assert [line["samples"] for line in read_metrics(path)] == [100, 200]


def test_norms_that_are_not_finite_become_null(tmp_path: Path) -> None:
    model = nn.Linear(2, 2, bias=False)
    optimizer = LARS(model.parameters(), 0.1)
    model.weight.grad = torch.full((2, 2), math.inf)
    optimizer.step()
    every = Every(Duration.parse("1st"), Clock(100, 100))
    layers = LayerRecord(optimizer, model, tmp_path / "layers.jsonl", every, 100)
    found = layers.measure(MOMENT)
    layers.write(steps(1)[0], 1, {name: row.tolist() for name, row in found.items()})
    line = json.loads((tmp_path / "layers.jsonl").read_text())
    assert line["layers"]["weight"][1] is None
