"""The moving average of the weights goes by samples."""

from __future__ import annotations

import torch
from torch import nn

from largebatch.probes import WeightAverage


def test_the_average_follows_samples_not_steps():
    """Weights that stand still give one average however 600 samples are cut into steps."""
    averages = []
    for batches in ([600], [300, 300], [50] * 12):
        model = nn.Linear(3, 2)
        torch.nn.init.zeros_(model.weight)
        average = WeightAverage(model, half_life=200)
        torch.nn.init.ones_(model.weight)
        for batch in batches:
            average.update(batch)
        averages.append(average.tensors["weight"])
    torch.testing.assert_close(averages[0], torch.full((2, 3), 1 - 0.5**3))
    torch.testing.assert_close(averages[1], averages[0])
    torch.testing.assert_close(averages[2], averages[0])
