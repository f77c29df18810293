"""RMSprop warm-up against its formula, and its two ends."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch.optim import (
    SGD,
    OptimConfig,
    RMSpropWarmup,
    build_optimizer,
    set_step,
    sgd_share,
)
from largebatch.schedule import Clock, Duration

SHAPES = ((7, 5), (5,), (4, 3, 2, 2))
OPTION = {"momentum": 0.9, "weight_decay": 0.01}


def some_params(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [
        nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        for shape in SHAPES
    ]


def grads_of(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def set_grads(params: list[nn.Parameter], step: int) -> None:
    for param, grad in zip(params, grads_of(step), strict=True):
        param.grad = grad.to(param.dtype)


def test_the_course_of_the_paper() -> None:
    expected = {0: 0.00916, 5: 0.0677, 10: 0.5, 11: 0.7, 12.5: 1.0, 90: 1.0}
    for epoch, share in expected.items():
        assert sgd_share(epoch) == pytest.approx(share, abs=5e-5)
    left, right = sgd_share(10 - 1e-6), sgd_share(10 + 1e-6)  # one slope on both sides
    assert right - 0.5 == pytest.approx(0.5 - left, rel=1e-5)


def test_it_is_its_formula_while_the_shares_change() -> None:
    params = some_params()
    plain = [param.detach().clone() for param in params]
    velocity, square = ([torch.zeros_like(p) for p in plain] for _ in range(2))
    optimizer = RMSpropWarmup(params, 0.4, rmsprop_lr=0.02, alpha=0.95, eps=1e-6, **OPTION)
    for step in range(12):
        epoch, lr = 1.5 * step, 0.4 * (1 + step % 3)
        set_grads(params, step)
        optimizer.set_epoch(epoch)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        share = sgd_share(epoch)
        for w, v, s, grad in zip(plain, velocity, square, grads_of(step), strict=True):
            g = grad + 0.01 * w
            if share < 1:
                s.mul_(0.95).add_(0.05 * g * g)
            v.mul_(0.9).add_((share + (1 - share) * (0.02 / 0.4) / (s.sqrt() + 1e-6)) * g)
            w.sub_(lr * v)
    assert sgd_share(1.5 * 11) == 1.0
    for param, w in zip(params, plain, strict=True):
        torch.testing.assert_close(param.detach(), w, rtol=1e-12, atol=1e-12)


def test_after_the_transition_it_is_sgd() -> None:
    ours, theirs = some_params(), some_params()
    first, second = RMSpropWarmup(ours, 0.1, **OPTION), SGD(theirs, 0.1, **OPTION)
    first.set_epoch(12.5)
    for step in range(20):
        set_grads(ours, step)
        set_grads(theirs, step)
        first.step()
        second.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_samples_drive_the_share_whatever_the_batch() -> None:
    config = OptimConfig(
        name="rmsprop_warmup",
        transition_center=Duration.parse("4ep"),
        transition_period=Duration.parse("2000sa"),
    )
    optimizer = build_optimizer(config, nn.Linear(3, 2))
    clock = Clock(epoch_samples=1000)
    for batch in (10, 700):
        for samples, share in ((4000, 0.5), (4500, 0.75), (5000, 1.0)):
            set_step(optimizer, config, 0.1, batch, clock, samples)
            assert [group["sgd_share"] for group in optimizer.param_groups] == [share]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"lr": -0.1}, "lr=-0.1"),
        ({"lr": 0.1, "alpha": 1.0}, "alpha=1.0"),
        ({"lr": 0.1, "momentum": -0.5}, "momentum=-0.5"),
        ({"lr": 0.1, "rmsprop_lr": float("nan")}, "rmsprop_lr=nan"),
    ],
)
def test_wrong_hyperparameters_are_refused(option: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RMSpropWarmup(some_params(), **option)
