"""Other weights in a model, for the length of a block."""

from __future__ import annotations

import torch
from torch import nn

from largebatch.models import swapped_in


def test_swapped_in_gives_back_the_same_memory():
    model = nn.BatchNorm1d(4)
    weight, mean = model.weight.data_ptr(), model.running_mean.data_ptr()
    other = {"weight": torch.full((4,), 5.0), "running_mean": torch.full((4,), 7.0)}
    with swapped_in(model, other):
        assert model.weight[0] == 5 and model.running_mean[0] == 7
    assert (model.weight.data_ptr(), model.running_mean.data_ptr()) == (weight, mean)
    assert model.weight[0] == 1 and model.running_mean[0] == 0
