"""A set as one step, against torch's own derivatives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from largebatch.lab.digits import digits
from largebatch.lab.networks import perceptron
from largebatch.lab.whole_batch import WholeBatch, dense_hessian, loss_of
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
