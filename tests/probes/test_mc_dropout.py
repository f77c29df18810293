"""Dropout at test time against its own definition."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from largebatch._errors import UserError
from largebatch.data import ImageBatch
from largebatch.probes import DropoutPasses
from largebatch.tasks import build_task
from largebatch.tasks.classification import ClassificationConfig


def batches() -> list[ImageBatch]:
    torch.manual_seed(1)
    found = []
    for size in (20, 7):
        ids = np.arange(size)
        x, y = torch.randn(size, 1, 4, 4), torch.randint(0, 3, (size,))
        found.append(ImageBatch(x, y, ids, ids, (size,)))
    return found


def passes_of(passes: int) -> DropoutPasses:
    task = build_task(ClassificationConfig(name="classification"), {"num_classes": 3})
    return DropoutPasses(task, SimpleNamespace(batches=batches), seed=0, passes=passes)


def net(p: float) -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Flatten(), nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(p))
    return nn.Sequential(*layers, nn.Linear(64, 3)).eval()


@torch.no_grad()
def test_nothing_dropped_is_plain_evaluation_without_spread() -> None:
    model = net(0.0)
    found = passes_of(5)(model)
    task: Any = passes_of(5)._task
    sums = sum(task.evaluate(model, batch).double() for batch in batches())
    plain = task.read(sums.tolist())
    assert found["loss"] == pytest.approx(plain["loss"], rel=1e-6)
    assert found["top1"] == plain["top1"]
    assert found["spread"] == 0 and abs(found["information"]) < 1e-6
    assert 0 < found["entropy"] < math.log(3)


@torch.no_grad()
def test_figures_are_those_of_many_passes() -> None:
    """Spread and information of 400 passes by hand; flags and statistics stay as they were."""
    model, count = net(0.5), 400
    before = {n: t.clone() for n, t in model.state_dict().items()}
    found = passes_of(count)(model)
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert passes_of(count)(model) == found
    model[4].train()
    spread, information, total = 0.0, 0.0, 0
    for batch in batches():
        p = torch.stack([model(batch.inputs).softmax(1) for _ in range(count)]).double()
        spread += float(p.var(0, correction=0).mean(1).sqrt().sum())
        mean = p.mean(0)
        information += float((-(mean * mean.log()).sum(1) + (p * p.log()).sum(2).mean(0)).sum())
        total += len(batch)
    assert found["spread"] == pytest.approx(spread / total, rel=0.05)
    assert found["information"] == pytest.approx(information / total, rel=0.1)
    assert found["spread"] > 0.01


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="passes=1: a number from 2 up"):
        passes_of(1)
    with pytest.raises(UserError, match="averages probabilities"):
        DropoutPasses(object(), None, 0)
