"""The rate and the factors of a step, from config and samples."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from largebatch.optim import OptimConfig, build_optimizer, set_step
from largebatch.schedule import Clock, Duration

CLOCK = Clock(epoch_samples=1000)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2))


def test_the_rate_reaches_every_group_times_its_multiplier() -> None:
    config = OptimConfig(weight_decay=1e-4)
    optimizer = build_optimizer(config, net())
    optimizer.param_groups[1]["lr_multiplier"] = 0.5
    set_step(optimizer, config, 0.3, 128)
    assert [group["lr"] for group in optimizer.param_groups] == [0.3, 0.15]
    assert optimizer.param_groups[0]["momentum"] == 0.9


def test_half_lives_give_one_memory_for_any_split_into_steps() -> None:
    config = OptimConfig(momentum_half_life=Duration.parse("2ep"))
    optimizer = build_optimizer(config, net())
    product = 1.0
    for batch in (100, 300, 600, 500, 500):  # 2000 samples: one half-life
        set_step(optimizer, config, 0.1, batch, CLOCK)
        product *= optimizer.param_groups[0]["momentum"]
    assert product == pytest.approx(0.5, rel=1e-12)


def test_the_damped_form_stays_damped() -> None:
    config = OptimConfig(momentum=0.9, dampening=0.9, momentum_half_life=Duration.parse("1000sa"))
    optimizer = build_optimizer(config, net())
    set_step(optimizer, config, 0.1, 500, CLOCK)
    group = optimizer.param_groups[0]
    assert group["momentum"] == group["dampening"] == pytest.approx(0.5**0.5)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("adam", ("betas", "betas")),
        ("adamw", ("betas", "betas")),
        ("nadam", ("betas", "betas")),
        ("radam", ("betas", "betas")),
        ("adamax", ("betas", "betas")),
        ("rmsprop", ("momentum", "alpha")),
        ("adadelta", (None, "rho")),
    ],
)
def test_half_lives_of_the_adaptive_family(name: str, keys: tuple[str | None, str]) -> None:
    first, second = (Duration.parse("1000sa"), Duration.parse("10ksa"))
    config = OptimConfig(
        name=name, momentum_half_life=first if keys[0] else None, beta2_half_life=second
    )
    optimizer = build_optimizer(config, net())
    set_step(optimizer, config, 0.1, 250, CLOCK)
    group = optimizer.param_groups[0]
    if keys == ("betas", "betas"):
        assert group["betas"] == pytest.approx((0.5**0.25, 0.5**0.025))
    else:
        assert keys[0] is None or group[keys[0]] == pytest.approx(0.5**0.25)
        assert group[keys[1]] == pytest.approx(0.5**0.025)
    for param in optimizer.param_groups[0]["params"]:
        param.grad = torch.ones_like(param)
    optimizer.step()


def test_half_lives_of_muon_reach_both_of_its_parts() -> None:
    half_life = Duration.parse("1000sa")
    config = OptimConfig(name="muon", momentum_half_life=half_life, beta2_half_life=half_life)
    optimizer = build_optimizer(config, net())
    set_step(optimizer, config, 0.1, 1000, CLOCK)
    for group in optimizer.param_groups:
        if group["muon"]:
            assert group["momentum"] == 0.5
        else:
            assert group["betas"] == (0.5, 0.5)
