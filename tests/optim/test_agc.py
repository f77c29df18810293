"""Adaptive gradient clipping against its formula in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch.nn import fix_classifier
from largebatch.optim import adaptive_grad_clip_, clipped_parameters

CLIPPING, EPS = 0.02, 1e-3


def net(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(96, 7), nn.Linear(7, 4)
    ).to(dtype)
    with torch.no_grad():
        model[3].weight[2] = 0.0  # a unit below eps
        model[1].bias.zero_()
    return model.to(memory_format=torch.channels_last)


def set_grads(model: nn.Module, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(1)
    for param in model.parameters():
        grad = torch.randn(param.shape, generator=generator, dtype=torch.float64)
        if grad.ndim > 1:  # units far below, about and far above the bound
            factors = torch.logspace(-4, 1, len(grad), dtype=torch.float64)
            grad = grad * factors.view(-1, *[1] * (grad.ndim - 1))
        param.grad = (grad * scale).to(param.dtype)


def written_out(weight: Tensor, grad: Tensor) -> Tensor:
    """Clip unit by unit, as section 4.1 has it."""
    units = [(weight, grad)] if weight.ndim <= 1 else list(zip(weight, grad, strict=True))
    clipped = []
    for w, g in units:
        w, g = w.double(), g.double()
        bound = CLIPPING * max(float(w.square().sum().sqrt()), EPS)
        norm = float(g.square().sum().sqrt())
        clipped.append(g * (bound / norm) if norm > bound else g)
    return clipped[0] if weight.ndim <= 1 else torch.stack(clipped)


@pytest.mark.parametrize(
    ("dtype", "rtol", "atol"),
    [
        (torch.float64, 1e-13, 0.0),
        (torch.float32, 1e-6, 0.0),
        (torch.bfloat16, 8e-3, 0.0),
        (torch.float16, 2e-3, 6e-8),  # a subnormal
    ],
)
def test_it_is_its_formula(dtype: torch.dtype, rtol: float, atol: float) -> None:
    model = net(dtype)
    set_grads(model)
    expected = [written_out(p.detach(), p.grad) for p in model.parameters()]
    before = [p.grad.clone() for p in model.parameters()]
    adaptive_grad_clip_(model.parameters(), CLIPPING, EPS)
    clipped = 0
    for param, grad, want in zip(model.parameters(), before, expected, strict=True):
        torch.testing.assert_close(param.grad.double(), want, rtol=rtol, atol=atol)
        assert param.grad.dtype == dtype
        clipped += not torch.equal(grad, param.grad)
        if param.ndim > 1:
            same = [torch.equal(a, b) for a, b in zip(grad, param.grad, strict=True)]
            assert any(same) and not all(same)  # within the bound: not a bit changes
    assert clipped == len(before)


def test_the_last_linear_weight_is_spared_and_its_bias_is_not() -> None:
    model = net()
    spared = {name for name, p in model.named_parameters()} - {
        name
        for name, p in model.named_parameters()
        if any(p is other for other in clipped_parameters(model))
    }
    assert spared == {"4.weight"}


@pytest.mark.parametrize("kind", ["hadamard", "orthonormal"])
def test_a_fixed_classifier_leaves_no_weight_to_spare(kind: str) -> None:
    model = fix_classifier(net(), kind)
    assert {id(p) for p in clipped_parameters(model)} == {id(p) for p in model.parameters()}


def test_zero_and_not_finite_gradients() -> None:
    param = nn.Parameter(torch.ones(4, 2))
    param.grad = torch.zeros(4, 2)
    param.grad[1, 0], param.grad[2, 1] = float("nan"), float("inf")
    adaptive_grad_clip_([param, nn.Parameter(torch.ones(2))])
    assert torch.equal(param.grad[[0, 3]], torch.zeros(2, 2))
    assert not param.grad[1].isfinite().any() and not param.grad[2].isfinite().all()
    empty = nn.Parameter(torch.ones(3, 0))
    empty.grad = torch.ones(3, 0)
    adaptive_grad_clip_(empty)


def test_loss_scaling_changes_nothing_once_unscaled() -> None:
    plain, scaled = net(torch.float32), net(torch.float32)
    set_grads(plain)
    set_grads(scaled, 2.0**12)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    scaler.scale(torch.zeros(()))  # makes the scale
    optimizer = torch.optim.SGD(scaled.parameters(), lr=0.1)
    scaler.unscale_(optimizer)
    for model in (plain, scaled):
        adaptive_grad_clip_(clipped_parameters(model), CLIPPING)
    for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_sparse_gradients_are_refused() -> None:
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(UserError, match="adaptive_grad_clip_: sparse"):
        adaptive_grad_clip_(embedding.parameters())
