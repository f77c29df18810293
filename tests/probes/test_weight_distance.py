"""How far the weights have come, from the true start of the run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from largebatch.probes import WeightDistance
from largebatch.schedule import Step
from largebatch.schedule.plan import Phase

STEP = Step(0, 1, 0, 0, Phase(size=1))
MOMENT: Any = None  # these instruments look at nothing of it


def test_weights_are_measured_at_steps_of_constant_ratio():
    spaced = WeightDistance(nn.Linear(1, 1))
    due = [step for step in range(1, 2000) if spaced.due(STEP, step)]
    assert due[:3] == [1, 2, 3] and 30 < len(due) < 45
    model = nn.Linear(3, 1, bias=False)
    distance = WeightDistance(model)
    model.weight.data += torch.tensor([[3.0, 4.0, 0.0]])
    found = {name: float(value) for name, value in distance.measure(MOMENT).items()}
    assert found["weight_distance"] == pytest.approx(5.0)
    assert found["weight_norm"] == pytest.approx(float(model.weight.detach().norm()))


def test_a_continuation_measures_from_the_start_of_the_run():
    first = nn.Linear(3, 1, bias=False)
    before = WeightDistance(first)
    first.weight.data += 1.0
    again = nn.Linear(3, 1, bias=False)
    again.weight.data.copy_(first.weight.data)
    after = WeightDistance(again)
    assert float(after.norms()["distance"]) == 0
    after.check(before.state())
    after.load(before.state())
    assert float(after.norms()["distance"]) == pytest.approx(3**0.5)
    for wrong in ({}, {"weight": torch.zeros(1, 2)}, {"weight": 3}, 7, {"other": torch.zeros(1)}):
        with pytest.raises(ValueError, match=r"missing|here|no "):
            after.check(wrong)


def test_a_rank_that_does_not_measure_keeps_no_copy():
    idle = WeightDistance(nn.Linear(3, 1), measures=False)
    assert (idle.norms(), idle.state(), idle.measure(MOMENT)) == ({}, None, {})
    idle.check({"anything": 1})
    idle.load({"anything": 1})
