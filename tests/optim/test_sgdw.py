"""SGDW: the paper's algorithm written out, and where it meets SGD with L2 decay."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from largebatch import _ops
from largebatch.optim import SGD, SGDW

compiled = pytest.mark.skipif(_ops.face() == "reference", reason="the compiled ops are absent")
FACES = [pytest.param(True, marks=compiled), False]
RATES = (0.1, 0.4, 0.2, 0.05)
DECAY, MOMENTUM = 0.03, 0.9


def grads_of(steps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(33, 5, generator=generator, dtype=torch.float64) for _ in range(steps)]


def path(param: nn.Parameter, optimizer: torch.optim.Optimizer) -> Tensor:
    for lr, grad in zip(RATES, grads_of(len(RATES)), strict=True):
        optimizer.param_groups[0]["lr"] = lr
        param.grad = grad.to(param.dtype)
        optimizer.step()
    return param.detach()


def start(dtype: torch.dtype = torch.float64) -> nn.Parameter:
    generator = torch.Generator().manual_seed(0)
    return nn.Parameter(torch.randn(33, 5, generator=generator, dtype=torch.float64).to(dtype))


@pytest.mark.parametrize("fused", FACES)
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_it_is_its_formula(fused: bool, nesterov: bool, inside: bool) -> None:
    param, plain = start(), start().detach().clone()
    optimizer = SGDW(
        [param],
        momentum=MOMENTUM,
        weight_decay=DECAY,
        nesterov=nesterov,
        lr_inside_momentum=inside,
        fused=fused,
    )
    found = path(param, optimizer)
    buffer = torch.zeros_like(plain)
    for lr, grad in zip(RATES, grads_of(len(RATES)), strict=True):
        entering = lr * grad if inside else grad
        buffer = MOMENTUM * buffer + entering
        move = entering + MOMENTUM * buffer if nesterov else buffer
        plain = plain - lr * DECAY * plain - (move if inside else lr * move)
    torch.testing.assert_close(found, plain, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("fused", FACES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_golden_two_steps(fused: bool, dtype: torch.dtype) -> None:
    # w = (3, 4), l = 0.5, momentum 0.5, lr 0.5: (0.5, 1) then (1, -1), all exact in 16 bits.
    # b = (0.5, 1), w = 0.75 w - 0.5 b = (2, 2.5); b = (1.25, -0.5), w = (0.875, 2.125).
    param = nn.Parameter(torch.tensor([3.0, 4.0], dtype=dtype))
    optimizer = SGDW([param], lr=0.5, momentum=0.5, weight_decay=0.5, fused=fused)
    for grad, expected in (((0.5, 1.0), [2.0, 2.5]), ((1.0, -1.0), [0.875, 2.125])):
        param.grad = torch.tensor(grad, dtype=dtype)
        optimizer.step()
        assert param.tolist() == expected


def test_without_gradients_weights_shrink_by_the_product() -> None:
    param = start()
    before = param.detach().clone()
    optimizer = SGDW([param], momentum=MOMENTUM, weight_decay=DECAY)
    for lr in RATES:
        optimizer.param_groups[0]["lr"] = lr
        param.grad = torch.zeros_like(param)
        optimizer.step()
    expected = before * math.prod(1 - lr * DECAY for lr in RATES)
    torch.testing.assert_close(param.detach(), expected, rtol=1e-13, atol=0)


def test_it_is_sgd_without_momentum_and_not_with_it() -> None:
    for momentum, same in ((0.0, True), (MOMENTUM, False)):
        ours, l2 = start(), start()
        first = path(ours, SGDW([ours], momentum=momentum, weight_decay=DECAY))
        second = path(l2, SGD([l2], momentum=momentum, weight_decay=DECAY))
        assert torch.allclose(first, second, rtol=1e-12, atol=1e-12) == same


def test_the_papers_decay_is_the_schedule_factor_times_weight_decay_over_the_peak() -> None:
    peak, decay = max(RATES), 0.01
    param, plain = start(), start().detach().clone()
    optimizer = SGDW([param], momentum=MOMENTUM, weight_decay=decay / peak, lr_inside_momentum=True)
    found = path(param, optimizer)
    buffer = torch.zeros_like(plain)
    for lr, grad in zip(RATES, grads_of(len(RATES)), strict=True):
        factor = lr / peak  # eta_t of algorithm 1, line 9
        buffer = MOMENTUM * buffer + factor * peak * grad
        plain = plain - buffer - factor * decay * plain
    torch.testing.assert_close(found, plain, rtol=1e-13, atol=1e-13)
