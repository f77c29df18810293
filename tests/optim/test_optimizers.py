"""Every registered optimizer: it trains, and its state survives saving and loading to the bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch.optim import OptimConfig, build_optimizer, optimizers
from largebatch.optim.torch_optimizers import TorchOptimizer

ELSEWHERE = ("apex_lamb", "deepspeed")  # need a GPU and apex, and DeepSpeed's engine
NAMES = [name for name in optimizers.names() if name not in ELSEWHERE]
RATES = {
    "sgd": 0.05,
    "sgdw": 0.05,
    "adadelta": 1.0,
    "adagrad": 0.05,
    "lars": 20.0,
    "lamb": 0.02,
    "muon": 0.02,
    "radam": 0.05,
    "rmsprop": 0.002,
    "rmsprop_warmup": 0.2,
}


def test_the_registry_lists_what_the_design_names() -> None:
    expected = (
        "adadelta, adagrad, adam, adamax, adamw, lamb, lars, muon, nadam, radam, rmsprop, "
        "rmsprop_warmup, sgd, sgdw"
    )
    assert set(expected.split(", ")) <= set(NAMES)
    assert "apex_lamb" in optimizers
    for entry in optimizers:
        assert entry.summary
        assert entry.source


def tiny_net(dtype: torch.dtype, channels_last: bool = True) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        # No bias: its gradient before a batch norm is rounding noise, which Adagrad would amplify.
        nn.Conv2d(2, 4, 2, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 16),
        nn.Tanh(),
        nn.Linear(16, 3),
    ).to(dtype)
    return net.to(memory_format=torch.channels_last) if channels_last else net


def config_of(name: str, **changes: Any) -> OptimConfig:
    return OptimConfig(name=name, lr=RATES.get(name, 0.01), weight_decay=1e-4, **changes)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    dtype = next(net.parameters()).dtype
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(64, 2, 4, 4, generator=generator).to(dtype)
    targets = (inputs.float().mean(dim=(1, 2, 3)) * 8).round().long().clamp(-1, 1) + 1
    losses = []
    for step in steps:
        part = slice(16 * (step % 4), 16 * (step % 4) + 16)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(inputs[part]), targets[part])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", NAMES)
def test_it_trains(name: str) -> None:
    net = tiny_net(torch.float32)
    losses = train(net, build_optimizer(config_of(name), net), range(60))
    assert sum(losses[-8:]) < 0.6 * sum(losses[:4]) * 2, losses


def through_a_file(state: Any) -> Any:
    """Copy state as a checkpoint does: tensors come back contiguous, bit by bit."""
    if isinstance(state, Tensor):
        return state.detach().clone(memory_format=torch.contiguous_format)
    if isinstance(state, dict):
        return {key: through_a_file(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(through_a_file(value) for value in state)
    return copy.deepcopy(state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_save_load_step_is_bit_identical(name: str, dtype: torch.dtype) -> None:
    # torch's own keep their state in float16, where an eps of 1e-8 is zero.
    coarse = dtype == torch.float16 and name in ("nadam", "radam", "rmsprop")
    config = config_of(name, **({"eps": 1e-3} if coarse else {}))
    net = tiny_net(dtype)
    optimizer = build_optimizer(config, net)
    train(net, optimizer, range(7))
    saved_net, saved = through_a_file(net.state_dict()), through_a_file(optimizer.state_dict())
    train(net, optimizer, range(7, 12))

    again = tiny_net(dtype)
    other = build_optimizer(config, again)
    train(again, other, range(2))  # state to be overwritten
    again.load_state_dict(saved_net)
    other.load_state_dict(saved)
    for key, value in flatten(other.state_dict()).items():
        before = flatten(saved)[key]
        assert type(value) is type(before), key
        same = torch.equal(value, before) if isinstance(value, Tensor) else value == before
        assert same, key
        if isinstance(value, Tensor):
            assert value.dtype == before.dtype, key
    train(again, other, range(7, 12))
    for key, value in net.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def flatten(state: Any, path: str = "") -> dict[str, Any]:
    if isinstance(state, dict):
        items = list(state.items())
    elif isinstance(state, (list, tuple)):
        items = list(enumerate(state))
    else:
        return {path: state}
    return {k: v for key, value in items for k, v in flatten(value, f"{path}/{key}").items()}


TORCHS = [entry.name for entry in optimizers if isinstance(entry.factory, TorchOptimizer)]


@pytest.mark.parametrize("name", [*TORCHS, "lars", "lamb"])
def test_the_fast_implementation_agrees_with_torchs_plain_one(name: str) -> None:
    paths = []
    for plain in (False, True):
        net = tiny_net(torch.float64, channels_last=not plain)
        optimizer = build_optimizer(config_of(name), net)
        for group in optimizer.param_groups:
            if name in ("lars", "lamb"):
                group["fused"] = False if plain else None
                continue
            assert group.get("fused") or group["foreach"]
            if plain:
                group.update(foreach=False, fused=None)
        train(net, optimizer, range(30))
        paths.append([param.detach() for param in net.parameters()])
    for a, b in zip(*paths, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["adam", "adamw", "adagrad"])
def test_fused_kernels_are_used_where_torch_has_them(name: str) -> None:
    optimizer = build_optimizer(config_of(name), tiny_net(torch.float32))
    assert all(group["fused"] for group in optimizer.param_groups)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (OptimConfig(name="sdg"), r"optim.name='sdg': .*did you mean 'sgd'"),
        (
            OptimConfig(name="adam", options={"amsgrat": True}),
            r"amsgrat=True.*did you mean 'amsgrad'",
        ),
        (OptimConfig(name="adam", options={"lr": 1.0}), r"options.lr=1.0: set optim.lr instead"),
        (OptimConfig(name="sgd", options={"momentum": 0.5}), r"set optim.momentum instead"),
        (OptimConfig(name="sgd", options={"forech": True}), r"optim.options.forech=True"),
        (OptimConfig(name="muon", options={"ns_step": 5}), r"did you mean 'ns_steps'"),
        (OptimConfig(name="adam", options={"capturable": "x", "foreach": True}), r"optim.options="),
        (OptimConfig(name="adam", momentum=0.5), r"optim.momentum=0.5: optim.name=adam has no"),
        (OptimConfig(name="sgd", betas=(0.5, 0.5)), r"optim.betas=.*optim.name=sgd has no"),
        (OptimConfig(name="adagrad", nesterov=True), r"optim.nesterov=True: optim.name=adagrad"),
    ],
)
def test_wrong_settings_are_refused(config: OptimConfig, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_optimizer(config, tiny_net(torch.float32))
    assert "\n" not in str(caught.value)


def test_options_reach_the_optimizer() -> None:
    adam = build_optimizer(config_of("adam", options={"amsgrad": True}), tiny_net(torch.float32))
    assert all(group["amsgrad"] for group in adam.param_groups)
    sgd = build_optimizer(config_of("sgd", options={"maximize": True}), tiny_net(torch.float32))
    assert all(group["maximize"] for group in sgd.param_groups)
