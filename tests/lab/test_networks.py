"""Networks that a seed draws."""

from __future__ import annotations

import torch
from torch import nn

from largebatch.lab.networks import perceptron, seeded


def test_a_seed_draws_the_same_and_leaves_the_generator_as_it_was() -> None:
    before = torch.get_rng_state()
    first, again, other = (perceptron((64, 8, 10), seed) for seed in (0, 0, 1))
    with seeded(5):
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    weights = [network[1].weight for network in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_layers_are_those_asked_for() -> None:
    model = perceptron((64, 9, 8, 10), 0, True, nn.Tanh, "kaiming", torch.float64)
    kinds = [nn.Flatten, *[nn.Linear, nn.BatchNorm1d, nn.Tanh] * 2, nn.Linear]
    assert [type(layer) for layer in model] == kinds
    assert model(torch.zeros(3, 1, 8, 8, dtype=torch.float64)).shape == (3, 10)
    assert not model[1].bias.any()  # of Kaiming's rule
