"""Clipping by the global norm."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from largebatch._errors import UserError
from largebatch.optim import (
    LAMB,
    LARS,
    SAM,
    SGD,
    SGDW,
    RMSpropWarmup,
    clip_grad_norm_,
    clip_gradients,
)


def with_gradients(scale: float) -> list[nn.Parameter]:
    torch.manual_seed(0)
    params = [
        nn.Parameter(torch.zeros(30, 20)),
        nn.Parameter(torch.zeros(7)),
        nn.Parameter(torch.zeros(2)),
    ]
    for param in params[:2]:  # the third has none
        param.grad = torch.randn_like(param) * scale
    return params


def norm_of(params: list[nn.Parameter]) -> float:
    grads = [p.grad.reshape(-1) for p in params if p.grad is not None]
    return torch.cat(grads).double().norm().item()


def test_a_large_gradient_ends_at_the_bound() -> None:
    params = with_gradients(10.0)
    before = norm_of(params)
    assert clip_grad_norm_(params, 5.0).item() == pytest.approx(before, rel=1e-6)
    assert norm_of(params) == pytest.approx(5.0, rel=1e-6)


def test_a_small_gradient_keeps_its_bits() -> None:
    params = with_gradients(0.01)
    kept = [p.grad.clone() for p in params[:2]]
    clip_grad_norm_(iter(params), 5.0)
    assert all(torch.equal(p.grad, k) for p, k in zip(params, kept, strict=False))


def test_equals_torchs() -> None:
    ours, theirs = with_gradients(10.0), with_gradients(10.0)
    clip_grad_norm_(ours, 1.0)
    torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    for a, b in zip(ours[:2], theirs[:2], strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-8)


def test_one_parameter_and_none() -> None:
    param = with_gradients(10.0)[0]
    clip_grad_norm_(param, 1.0)
    assert norm_of([param]) == pytest.approx(1.0, rel=1e-6)
    assert clip_grad_norm_([], 1.0).item() == 0.0


def test_optimizers_without_a_factor_get_scaled_gradients() -> None:
    params = with_gradients(10.0)
    before = norm_of(params)
    factor = clip_gradients(torch.optim.Adam(params), 5.0)
    assert factor.item() == pytest.approx(5.0 / before, rel=1e-6)
    assert norm_of(params) == pytest.approx(5.0, rel=1e-6)


def test_sgd_gets_the_factor_and_keeps_the_gradients() -> None:
    params = with_gradients(10.0)
    before = norm_of(params)
    optimizer = SGD(params, lr=1.0)
    factor = clip_gradients(optimizer, 5.0)
    assert norm_of(params) == before
    optimizer.step()
    moved = torch.cat([p.detach().reshape(-1) for p in params]).norm().item()
    assert moved == pytest.approx(5.0, rel=1e-6)
    assert factor.item() == pytest.approx(5.0 / before, rel=1e-6)


def test_sparse_gradients_meet_one_message_everywhere() -> None:
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    params = list(embedding.parameters())
    calls = {
        "LAMB": LAMB(params, 0.1, preset="nvlamb").step,  # clips before it looks at a gradient
        "LARS": LARS(params, 0.1).step,
        "SGDW": SGDW(params, 0.1).step,
        "RMSpropWarmup": RMSpropWarmup(params, 0.1).step,
        "clip_gradients": lambda: clip_gradients(SGD(params), 1.0),
        "clip_grad_norm_": lambda: clip_grad_norm_(params, 1.0),
        "SAM": lambda: SAM(SGD(params), embedding).perturbed().__enter__(),
    }
    for name, call in calls.items():
        with pytest.raises(UserError, match=f"^{name}: sparse gradients; make them dense"):
            call()
