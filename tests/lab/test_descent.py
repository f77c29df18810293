"""Plain training: its batches, its steps, its end."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from largebatch.lab.descent import accuracy, descend
from largebatch.lab.digits import digits
from largebatch.lab.networks import perceptron
from largebatch.lab.whole_batch import WholeBatch
from largebatch.optim import SGD
from largebatch.probes.parameter_space import ParameterSpace


def test_a_batch_of_everything_is_gradient_descent() -> None:
    samples = digits("train", torch.float64, limit=40)
    model, twin = (perceptron((64, 10), 0, dtype=torch.float64) for _ in range(2))
    losses = list(descend(model, samples, SGD(model.parameters(), lr=0.1), 40, 5, seed=1))
    replay, space = WholeBatch(twin, samples), ParameterSpace(twin)
    for loss in losses:
        assert loss == pytest.approx(float(replay.loss()), abs=1e-12)
        space.set(space.weights() - 0.1 * space.flat(replay.gradient()))
    torch.testing.assert_close(ParameterSpace(model).weights(), space.weights())


def test_an_epoch_has_every_sample_once_and_a_seed_its_own_order() -> None:
    inputs = torch.arange(10.0).view(-1, 1)
    samples = inputs, torch.zeros(10)

    def seen(seed: int) -> list[float]:
        model, found = nn.Linear(1, 1), list[float]()

        def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return outputs.sum() * 0

        model.register_forward_pre_hook(lambda _, x: found.extend(x[0].flatten().tolist()))
        for _ in descend(model, samples, SGD(model.parameters(), lr=0.1), 3, 6, seed, loss):
            pass
        return found

    first, again, other = seen(0), seen(0), seen(1)
    assert first == again != other
    assert len(set(first[:9])) == len(set(first[9:])) == 9  # of ten, by threes


def test_training_learns_and_ends_where_it_diverges() -> None:
    samples = digits("train")
    model = perceptron((64, 10), 0)
    assert accuracy(model, samples) < 0.3
    losses = list(descend(model, samples, SGD(model.parameters(), lr=0.1), 32, 90, 0))
    assert len(losses) == 90 and accuracy(model, samples) > 0.9
    model = perceptron((64, 32, 32, 10), 0)
    assert len(list(descend(model, samples, SGD(model.parameters(), lr=1e6), 32, 90, 0))) < 90


def test_a_schedule_multiplies_the_rate_of_every_group() -> None:
    model, samples = nn.Linear(1, 1), (torch.zeros(4, 1), torch.zeros(4, 1))
    groups = [{"params": [model.weight], "lr": 0.8}, {"params": [model.bias], "lr": 0.1}]
    optimizer, seen = SGD(groups, lr=1.0), list[list[float]]()
    loss = nn.functional.mse_loss
    for _ in descend(model, samples, optimizer, 2, 4, 0, loss, lambda done: 1 - done):
        seen.append([group["lr"] for group in optimizer.param_groups])
    assert seen == [pytest.approx([0.8 * f, 0.1 * f]) for f in (1, 0.75, 0.5, 0.25)]
