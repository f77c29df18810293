"""Scaled weight standardisation, SkipInit and the gains of activations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from largebatch.nn import ACTIVATION_GAINS, ScaledWSConv2d, SkipInit
from largebatch.optim import param_groups


@pytest.mark.parametrize("options", [{}, {"groups": 2, "stride": 2, "padding": 1, "bias": False}])
def test_the_published_weight(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    conv = ScaledWSConv2d(4, 6, 3, **options).double()
    nn.init.normal_(conv.weight, mean=0.7, std=3)
    w = conv.standardized_weight()
    zeros, ones = torch.zeros(6).double(), torch.ones(6).double()
    torch.testing.assert_close(w.flatten(1).sum(1), zeros)
    torch.testing.assert_close(w.square().flatten(1).sum(1), ones)
    # The lecture's (W - mu) / (sqrt(N) sigma), and the code's gain.
    nn.init.uniform_(conv.gain)
    rows = conv.weight.flatten(1)
    mu, sigma = rows.mean(1, keepdim=True), rows.std(1, keepdim=True, correction=0)
    lecture = (rows - mu) / (math.sqrt(rows.shape[1]) * sigma) * conv.gain.unsqueeze(1)
    torch.testing.assert_close(conv.standardized_weight().flatten(1), lecture)
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    keys = {k: v for k, v in options.items() if k != "bias"}
    expected = F.conv2d(x, lecture.view_as(conv.weight), conv.bias, **keys)
    torch.testing.assert_close(conv(x), expected)


def test_derivatives_and_invariance() -> None:
    conv = ScaledWSConv2d(2, 3, 2).double()
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)

    def call(*tensors: torch.Tensor) -> Any:
        x, weight, gain, bias = tensors
        held = {"weight": weight, "gain": gain, "bias": bias}
        return torch.func.functional_call(conv, held, (x,))

    assert torch.autograd.gradcheck(call, (x, conv.weight, conv.gain, conv.bias))
    conv(x).sum().backward()
    zero = torch.zeros(3).double()
    torch.testing.assert_close(conv.weight.grad.flatten(1).sum(1), zero)
    torch.testing.assert_close((conv.weight.grad * conv.weight).flatten(1).sum(1), zero)
    before = conv(x)
    with torch.no_grad():
        conv.weight.mul_(5).add_(2)
    torch.testing.assert_close(conv(x), before)


def test_eps_bounds_the_scale_of_weights_that_hardly_vary() -> None:
    conv = ScaledWSConv2d(2, 1, 1).double()
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([1.0, 1.002], dtype=torch.float64).view(1, 2, 1, 1))
    deviations = torch.tensor([-0.001, 0.001]).double() / 1e-2  # fan_in x variance is 2e-6
    torch.testing.assert_close(conv.standardized_weight().flatten(), deviations)


def test_gains_do_not_decay() -> None:
    decay, rest = param_groups(nn.Sequential(ScaledWSConv2d(2, 3, 1), SkipInit()), 0.1)
    assert [name for name, _ in decay["params"]] == ["0.weight"]
    assert [name for name, _ in rest["params"]] == ["0.bias", "0.gain", "1.gain"]


@pytest.mark.parametrize("name", ACTIVATION_GAINS)
def test_activation_gains_bring_the_variance_back_to_one(name: str) -> None:
    x = torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = getattr(torch, name, None) or getattr(F, name)
    assert (y(x) * ACTIVATION_GAINS[name]).var().item() == pytest.approx(1, abs=0.01)
    if name == "relu":
        assert ACTIVATION_GAINS[name] == pytest.approx(math.sqrt(2 / (1 - 1 / math.pi)), rel=1e-3)


def test_a_deep_stack_keeps_variance_and_mean() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 64, 6, 6)
    for _ in range(10):
        x = F.relu(x) * ACTIVATION_GAINS["relu"]
        x = ScaledWSConv2d(64, 64, 1, bias=False)(x)
    assert x.var((0, 2, 3)).mean().item() == pytest.approx(1, abs=0.25)
    assert x.mean((0, 2, 3)).square().mean().item() < 0.1


def test_skip_init() -> None:
    x = torch.randn(3, 2)
    assert not SkipInit()(x).any()
    torch.testing.assert_close(SkipInit(0.5)(x), x / 2)
    layer = SkipInit()
    layer(x).sum().backward()
    torch.testing.assert_close(layer.gain.grad, x.sum())
