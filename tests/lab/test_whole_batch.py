"""A set as one step, against torch's own derivatives, and the training that leads to it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from largebatch.lab.descent import accuracy, descend
from largebatch.lab.digits import digits
from largebatch.lab.networks import perceptron
from largebatch.lab.whole_batch import WholeBatch, dense_hessian, loss_of
from largebatch.optim import SGD
from largebatch.probes.hessian import Hessian
from largebatch.probes.parameter_space import ParameterSpace
from largebatch.weight_space import weights_of


def test_products_are_those_of_the_dense_hessian() -> None:
    samples = digits("train", torch.float64, limit=50)
    model = perceptron((64, 5, 10), 0, activation=nn.Tanh, dtype=torch.float64)
    space = ParameterSpace(model)
    vector = space.random(1)
    product = Hessian(space, WholeBatch(model, samples))(vector)
    torch.testing.assert_close(
        product, dense_hessian(model, samples) @ vector, rtol=1e-7, atol=1e-7
    )


def test_looking_leaves_a_model_with_norms_as_it_was() -> None:
    samples = digits("train", limit=50)
    model = perceptron((64, 5, 10), 0, norm=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    replay = WholeBatch(model, samples)
    replay.gradient()
    of_weights = loss_of(model, samples)(weights_of(model))
    assert float(replay.loss()) == pytest.approx(of_weights, rel=1e-6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_digits_are_those_of_a_run() -> None:
    inputs, targets = digits("train")
    assert inputs.shape == (1442, 1, 8, 8) and len(digits("val")[1]) == 355
    assert abs(float(inputs.mean())) < 0.02 and abs(float(inputs.std()) - 1) < 0.02
    assert targets.unique().tolist() == list(range(10))


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
