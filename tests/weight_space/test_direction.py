"""Filter-normalised directions: as long as the filters, and the picture is that of the function."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from largebatch.weight_space import (
    Weights,
    filter_normalized_direction,
    gaussian_noise,
    moved,
    normalize_filters,
    weights_of,
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)
    ).double()


def picture(model: nn.Module, directions: list[Weights]) -> torch.Tensor:
    torch.manual_seed(1)
    x, y = torch.randn(32, 1, 6, 6, dtype=torch.float64), torch.randint(0, 3, (32,))
    own = weights_of(model)
    first, second = directions
    places = torch.linspace(-1, 1, 5).tolist()

    def at(a: float, b: float) -> Weights:
        return moved(own, (first, a), (second, b))

    return torch.tensor(
        [
            [float(cross_entropy(functional_call(model, at(a, b), x), y)) for a in places]
            for b in places
        ],
        dtype=torch.float64,
    )


def directions_of(model: nn.Module) -> list[Weights]:
    return [filter_normalized_direction(model, torch.Generator().manual_seed(s)) for s in (5, 6)]


def rescaled(c: float) -> nn.Module:
    model = network()
    with torch.no_grad():
        model[0].weight.mul_(c)
        model[0].bias.mul_(c)
        model[3].weight.div_(c)
    return model


def test_every_filter_has_the_length_of_the_networks() -> None:
    model = network()
    direction = filter_normalized_direction(model, torch.Generator().manual_seed(0))
    for name, own in model.named_parameters():
        if own.ndim < 2:
            assert not direction[name].any()
        else:
            torch.testing.assert_close(
                direction[name].flatten(1).norm(dim=1), own.detach().flatten(1).norm(dim=1)
            )
    kept = filter_normalized_direction(model, torch.Generator().manual_seed(0), "weights")
    assert torch.equal(kept["0.bias"], model[0].bias.detach())


def test_a_filter_of_no_length_stays() -> None:
    weights = {"w": torch.tensor([[0.0, 0.0], [3.0, 4.0]])}
    found = normalize_filters({"w": torch.tensor([[1.0, 1.0], [0.0, 0.0]])}, weights)
    assert not found["w"].any()


@pytest.mark.parametrize("c", [0.1, 7.0])
def test_the_picture_is_that_of_the_function(c: float) -> None:
    """Section 4: a layer times c and the next divided by it is the same ReLU network."""
    plain = picture(network(), directions_of(network()))
    scaled = picture(rescaled(c), directions_of(rescaled(c)))
    torch.testing.assert_close(scaled, plain, rtol=1e-9, atol=1e-9)
    noise = [gaussian_noise(weights_of(network()), s) for s in (5, 6)]
    assert (picture(rescaled(c), noise) - picture(network(), noise)).abs().max() > 1e-2
