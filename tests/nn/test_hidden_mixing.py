"""Manifold mixup: identity at a weight of one, mixing between two blocks otherwise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from largebatch._errors import UserError
from largebatch.data import DataConfig
from largebatch.nn import hidden_mixing, mix_blocks

ROWS = torch.tensor([1, 0, 3, 2])


def network(blocks: list[int | str]) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2))
    mix_blocks(model.double(), blocks)
    return model


X = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_weight_of_one_is_the_identity_at_any_layer(number: int) -> None:
    model = network(["input", 0, "2", 4])
    plain = model(X)
    with hidden_mixing(ROWS, {number: torch.ones(4, dtype=torch.float64)}):
        assert torch.equal(model(X), plain)
    with hidden_mixing(ROWS, {number: torch.zeros(4, dtype=torch.float64)}):
        torch.testing.assert_close(model(X), plain[ROWS])  # no block sees more than a row
    assert torch.equal(model(X), plain)


def test_states_are_mixed_between_two_blocks() -> None:
    model = network(["input", 1])
    share = torch.tensor([0.3, 0.3, 1.0, 1.0], dtype=torch.float64)
    state = model[:2](X)
    expected = model[2:](share[:, None] * state + (1 - share[:, None]) * state[ROWS])
    with hidden_mixing(ROWS, {1: share}):
        torch.testing.assert_close(model(X), expected)


@pytest.mark.parametrize(
    ("blocks", "told"),
    [
        ([7], "7 is no block of the model: choose input, an index from 0 to 4"),
        (["layer9"], "'layer9' is no block of the model"),
        ([True], "True is no block"),
        ([2, "2"], "2 is named twice"),
    ],
)
def test_blocks_that_are_not_there_are_refused(blocks: list[int | str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        network(blocks)


def test_a_block_that_cannot_be_mixed_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.LSTM(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(self.a(x)))[0]

    for block, told in (("a", "not called once"), ("b", "block 'b' returns no tensor")):
        model = Twice()
        mix_blocks(model, [block])
        with pytest.raises(UserError, match=told), hidden_mixing(ROWS, {0: torch.ones(4)}):
            model(X.float())


def test_layers_without_mixup_are_refused() -> None:
    with pytest.raises(UserError, match=r"data.mixup_layers=\[1\]: data.mixup is 0"):
        DataConfig(mixup_layers=[1]).check()
