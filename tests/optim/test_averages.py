"""Averages that follow the batch: half-lives, the sde rule, decay by its timescale."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from largebatch._errors import UserError
from largebatch.optim import OptimConfig, build_optimizer, optimizers, rate_rule, set_step
from largebatch.optim.averages import short_averages
from largebatch.schedule import Clock, Duration, scale_lr

CLOCK = Clock(epoch_samples=1000, total_samples=100_000)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2))


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        *(("sgd", "linear"), ("sgdw", "linear"), ("lars", "sqrt"), ("lamb", "sqrt")),
        *(("adamw", "sqrt"), ("muon", "sqrt"), ("rmsprop", "sqrt"), ("rmsprop_warmup", "linear")),
    ],
)
def test_the_rate_goes_as_the_kind_of_optimizer_asks(name: str, rule: str) -> None:
    assert rate_rule(OptimConfig(name=name, scaling="sde")) == rule
    assert rate_rule(OptimConfig(name=name, scaling="sqrt")) == "sqrt"


@pytest.mark.parametrize("name", ["adam", "adamw", "lamb", "muon", "nadam", "rmsprop", "adadelta"])
def test_a_batch_change_leaves_the_horizon_in_samples(name: str) -> None:
    config = OptimConfig(name=name, scaling="sde", lr=0.01)
    optimizer = build_optimizer(config, net())
    group = next(g for g in optimizer.param_groups if not g.get("muon"))
    keys = [key for key in ("betas", "alpha", "rho") if key in group]
    tuned = {key: group[key] for key in keys}
    eps = group["eps"]
    products = {key: [1.0, 1.0] for key in keys}
    batches = (64, 128, 32, 256, 32)
    for batch in batches:
        set_step(optimizer, config, 0.01, batch, CLOCK, reference=64)
        for key in keys:
            both = group[key] if key == "betas" else (group[key],) * 2
            products[key] = [p * f for p, f in zip(products[key], both, strict=True)]
        if name != "adadelta":
            assert group["eps"] == pytest.approx(eps * math.sqrt(64 / batch))
    for key in keys:
        both = tuned[key] if key == "betas" else (tuned[key],) * 2
        wanted = [factor ** (sum(batches) / 64) for factor in both]
        assert products[key] == pytest.approx(wanted, rel=1e-12)


def test_a_half_life_goes_before_the_rule_and_momentum_stays() -> None:
    config = OptimConfig(name="adamw", scaling="sde", beta2_half_life=Duration.parse("1000sa"))
    optimizer = build_optimizer(config, net())
    set_step(optimizer, config, 0.01, 128, CLOCK, reference=64)
    assert optimizer.param_groups[0]["betas"] == pytest.approx((0.81, 0.5**0.128))
    config = OptimConfig(name="sgd", scaling="sde")
    optimizer = build_optimizer(config, net())
    set_step(optimizer, config, 0.01, 128, CLOCK, reference=64)
    assert optimizer.param_groups[0]["momentum"] == 0.9


def spread(name: str, lr: float, batch: int, curvature: float) -> float:
    """Return the mean square of weights on a noisy quadratic, long after the start."""
    torch.manual_seed(5)
    reference = 1
    config = OptimConfig(name=name, scaling="sde", lr=lr, momentum=0.0)
    if name == "adam":
        config = OptimConfig(name=name, scaling="sde", lr=lr, betas=(0.5, 0.98), eps=1e-8)
    model = nn.Linear(200, 300, bias=False, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    optimizer = build_optimizer(config, model)
    rate = scale_lr(lr, batch, reference, rate_rule(config))
    seen, found = 0, []
    while seen < 14 / (lr * curvature):
        set_step(optimizer, config, rate, batch, CLOCK, reference=reference)
        noise = torch.randn_like(model.weight) / math.sqrt(batch)
        model.weight.grad = curvature * model.weight.detach() + noise
        optimizer.step()
        seen += batch
        if seen > 6 / (lr * curvature):
            found.append(float(model.weight.detach().square().mean()))
    return sum(found) / len(found)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_weights_spread_as_far_at_twice_the_batch_to_first_order(name: str) -> None:
    """The gap is of second order: halving the rate makes it four times smaller."""
    curvature = 1.0 if name == "sgd" else 0.5
    gaps = []
    for lr in (0.2, 0.1):
        one, two = (spread(name, lr, batch, curvature) for batch in (1, 2))
        assert two == pytest.approx(one, rel=0.35)
        gaps.append(two - one)
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.35), gaps


def test_decay_keeps_its_timescale_over_batch_and_rate() -> None:
    """(1 - rate x decay)^(steps of a timescale) = 1 / e, for any batch and rate."""
    for name, (batch, rate) in itertools.product(
        ("sgdw", "adamw", "muon"), ((64, 0.01), (128, 0.02), (512, 0.02))
    ):
        config = OptimConfig(name=name, decay_timescale=Duration.parse("50%"))
        model = net()
        optimizer = build_optimizer(config, model)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        set_step(optimizer, config, rate, batch, CLOCK, peak=rate, size=batch)
        kept = 1 - batch / 50_000
        for param in model.parameters():
            param.grad = torch.zeros_like(param)
        optimizer.step()
        for n, p in model.named_parameters():
            wanted = before[n] * (kept if p.ndim > 1 else 1.0)
            assert torch.allclose(p, wanted, rtol=1e-5), (name, n)
        # In warm-up the decay is that of the peak: it is times the rate.
        set_step(optimizer, config, rate / 10, batch, CLOCK, peak=rate, size=batch)
        decays = {group["weight_decay"] for group in optimizer.param_groups} - {0.0}
        assert list(decays) == pytest.approx([batch / (rate * 50_000)])


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"weight_decay": 0.1}, r"takes the place of optim\.weight_decay=0\.1"),
        ({"lr": 0.0}, "needs a rate above 0"),
        ({"name": "sgd"}, r"optim\.name=sgd has no such setting"),
        ({"decay_timescale": Duration.parse("0ep")}, "more than 0"),
    ],
)
def test_a_timescale_that_cannot_be_says_so(keys: dict, said: str) -> None:
    config = OptimConfig(**{"name": "adamw", "decay_timescale": Duration.parse("1ep"), **keys})
    with pytest.raises(UserError, match=said):
        build_optimizer(config, net())


def test_what_leaves_less_than_a_tenth_is_found() -> None:
    config = OptimConfig(name="adamw", scaling="sde")
    assert [key for key, _ in short_averages(config, CLOCK, 64, 64 * 21)] == []
    found = dict(short_averages(config, CLOCK, 64, 64 * 22))
    (key,) = found
    assert "optim.betas=[0.9, 0.999]" in key and found[key] == pytest.approx(0.9**22)
    half_life = Duration.parse("1000sa")
    config = OptimConfig(name="adamw", momentum_half_life=half_life, beta2_half_life=half_life)
    assert list(short_averages(config, CLOCK, 64, 3321)) == []
    assert len(list(short_averages(config, CLOCK, 64, 3323))) == 2


def test_facts_of_scale_are_those_of_the_updates() -> None:
    """Ten times the gradients: an optimizer that is free of scale takes the same eighth step."""
    for entry in optimizers:
        if entry.facts.by_engine or entry.name in ("apex_lamb", "rmsprop_warmup", "adadelta"):
            continue
        lengths = []
        for size in (1.0, 10.0):
            model = net()
            optimizer = build_optimizer(OptimConfig(name=entry.name, lr=0.001), model)
            torch.manual_seed(1)
            for _ in range(8):
                before = [p.detach().clone() for p in model.parameters()]
                for p in model.parameters():
                    p.grad = size * torch.randn_like(p)
                optimizer.step()
            pairs = zip(model.parameters(), before, strict=True)
            lengths.append(sum(float((p.detach() - b).square().sum()) for p, b in pairs))
        free = lengths[1] == pytest.approx(lengths[0], rel=0.05)
        assert free == entry.facts.scale_free, (entry.name, lengths)
