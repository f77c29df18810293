"""L1, L-infinity and top-k batch norm as modules: torch's shapes, statistics and conversions."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch.nn import (
    GhostBatchNorm,
    L1BatchNorm,
    LInfBatchNorm,
    NormConfig,
    TopKBatchNorm,
    check_norm,
    convert_batch_norm,
    ghost_place,
    step_end,
)

KINDS: dict[str, Any] = {"l1": L1BatchNorm, "linf": LInfBatchNorm, "topk": TopKBatchNorm}


def deviation(kind: str, d: Tensor, k: int = 10) -> Tensor:
    """Return the estimate of the standard deviation of (C, n) deviations, as the paper has it."""
    n = d.shape[1]
    if kind == "l1":
        return math.sqrt(math.pi / 2) * d.abs().mean(1)
    k = min(k, n) if kind == "topk" else 1
    constant = 0.5 * (1 + math.sqrt(math.pi * math.log(4))) / math.sqrt(2 * math.log(n))
    return constant * d.abs().sort(dim=1, descending=True).values[:, :k].mean(1)


def ghosts_of(x: Tensor, sizes: list[int]) -> list[Tensor]:
    return [ghost.transpose(0, 1).flatten(1) for ghost in x.split(sizes)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(10, 3), (10, 3, 4), (10, 3, 4, 2), (10, 3, 2, 2, 2)])
@pytest.mark.parametrize("ghost_size", [None, 4])
def test_training_and_evaluation(kind: str, shape: tuple[int, ...], ghost_size: int | None) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64) * 3 + 2
    norm = KINDS[kind](3, ghost_size, momentum=0.3).double()
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    column = [-1 if d == 1 else 1 for d in range(x.dim())]
    sizes = [10] if ghost_size is None else [4, 4, 2]
    expected, mean, variance = [], torch.zeros(3).double(), torch.ones(3).double()
    for ghost, values in zip(x.split(sizes), ghosts_of(x, sizes), strict=True):
        center = values.mean(1)
        scale = deviation(kind, values - center.unsqueeze(1))
        y = (ghost - center.view(column)) / (scale + norm.eps).view(column)
        expected.append(y * norm.weight.view(column) + norm.bias.view(column))
        mean = 0.7 * mean + 0.3 * center
        variance = 0.7 * variance + 0.3 * scale.square()
    torch.testing.assert_close(norm(x), torch.cat(expected))
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)
    assert int(norm.num_batches_tracked) == len(sizes)
    before = copy.deepcopy(norm.state_dict())
    y = (x - mean.view(column)) / (variance.sqrt() + norm.eps).view(column)
    y = y * norm.weight.view(column) + norm.bias.view(column)
    torch.testing.assert_close(norm.eval()(x), y)
    assert all(torch.equal(before[name], t) for name, t in norm.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_relu_residual_and_batch_statistics_in_evaluation(kind: str) -> None:
    x, shortcut = torch.randn(2, 6, 3, 4, 4)
    fused = KINDS[kind](3, 3, track_running_stats=False, activation="relu")
    apart = KINDS[kind](3, 3, track_running_stats=False)
    torch.testing.assert_close(fused(x, shortcut), torch.relu(apart(x) + shortcut))
    # A residual of another type cannot be fused; torch's rules of promotion hold.
    assert fused(x.bfloat16(), shortcut).dtype == torch.float32
    whole = KINDS[kind](3, track_running_stats=False)
    torch.testing.assert_close(apart.eval()(x, shortcut), whole(x) + shortcut)


@pytest.mark.parametrize("kind", ["ghost", *KINDS])
def test_there_and_back(kind: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=1e-3, momentum=0.2), nn.ReLU())
    net(torch.randn(4, 3, 5, 5))
    state = copy.deepcopy(net.state_dict())
    weight = net[1].weight
    convert_batch_norm(net, kind, ghost_size=2)
    assert isinstance(net[1], KINDS.get(kind, GhostBatchNorm))
    assert (net[1].eps, net[1].momentum, net[1].ghost_size) == (1e-3, 0.2, 2)
    assert net[1].weight is weight
    net.load_state_dict(state, strict=True)
    net(torch.randn(4, 3, 5, 5)).sum().backward()
    assert weight.grad is not None
    convert_batch_norm(net, "batch")
    assert type(net[1]) is nn.BatchNorm2d
    assert list(net.state_dict()) == list(state)


def test_k_and_whole_batches() -> None:
    net = convert_batch_norm(nn.Sequential(nn.BatchNorm1d(3)), "topk", ghost_size=4, topk=3)
    assert net[0].top == 3
    assert "k=3" in repr(net[0])
    assert convert_batch_norm(nn.BatchNorm1d(3), "topk").top == 10
    x = torch.randn(20, 3, dtype=torch.float64)
    one, infinity = TopKBatchNorm(3, 5, k=1).double(), LInfBatchNorm(3, 5).double()
    assert torch.equal(one(x), infinity(x))
    whole = convert_batch_norm(nn.BatchNorm1d(3), "l1").double()
    assert whole.ghost_size is None
    torch.testing.assert_close(whole(x), L1BatchNorm(3, 20).double()(x))
    with ghost_place(0, 2), pytest.raises(ValueError, match="ghost_size is not set"):
        whole(x)
    with pytest.raises(ValueError, match="k=0"):
        TopKBatchNorm(3, k=0)
    for config, message in (
        (NormConfig(kind="l1", topk=3), "norm.topk=3: no effect with norm.kind=l1"),
        (NormConfig(kind="topk", topk=0), "norm.topk=0: must be at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            check_norm(config)


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_equal_one_forward(kind: str) -> None:
    x = torch.randn(14, 3, 2, dtype=torch.float64)
    whole, parts = KINDS[kind](3, 4).double(), KINDS[kind](3, 4).double()
    expected = whole(x)
    found = []
    for first in (0, 2):
        with ghost_place(first, 4):
            found.append(parts(x[4 * first : 4 * (first + 2)]))
    step_end(parts, 4)
    torch.testing.assert_close(torch.cat(found), expected)
    torch.testing.assert_close(parts.state_dict(), whole.state_dict(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_float16_of_size_300(kind: str) -> None:
    """Squares of these overflow float16: neither the values nor the gradients may."""
    torch.manual_seed(0)
    x = (torch.randn(32, 4, 6, 6) * 300).half().requires_grad_()
    norm = KINDS[kind](4, 8, dtype=torch.float16)
    y = norm(x)
    y.sum().backward()
    assert y.dtype == torch.float16
    assert torch.isfinite(y).all()
    assert x.grad is not None and torch.isfinite(x.grad).all()
    assert torch.isfinite(norm.weight.grad).all()
    exact = KINDS[kind](4, 8).double()(x.detach().double())
    torch.testing.assert_close(y.double(), exact, rtol=2e-3, atol=2e-3)
