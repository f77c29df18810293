"""Steps on the host: the bits of the wrapped optimizer, its state, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch.optim import LAMB, LARS, SGD, SGDW, Offload, clip_gradients, layer_rates

KINDS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda groups: SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.01),
    "sgd, corrected": lambda groups: SGD(
        groups, lr=0.1, momentum=0.9, lr_inside_momentum=True, momentum_correction=True
    ),
    "sgdw": lambda groups: SGDW(groups, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "lars": lambda groups: LARS(groups, lr=2.0, weight_decay=0.01, preset="mlperf"),
    "lamb": lambda groups: LAMB(groups, lr=0.02, weight_decay=0.01),
    "lamb, clipped": lambda groups: LAMB(groups, lr=0.02, max_grad_norm=0.5),
}
SMALL = 100  # bytes: nearly every parameter is a part


def net(device: str = "cpu") -> list[nn.Parameter]:
    """Four types in two groups' worth of parameters, one of them channels_last, one empty."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(7, 3), (5,), (4, 3, 2, 2), (0, 3), (6, 2), (3,)]
    dtypes = [torch.float32, torch.bfloat16, torch.float32, torch.float32, torch.float64]
    params = [
        nn.Parameter(torch.randn(shape, generator=generator).to(device, dtype))
        for shape, dtype in zip(shapes, [*dtypes, torch.float16], strict=True)
    ]
    params[2].data = params[2].data.to(memory_format=torch.channels_last)
    return params


def groups(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": params[:3]}, {"params": params[3:], "weight_decay": 0.0}]


def set_grads(params: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for number, param in enumerate(params):
        grad = torch.randn(param.shape, generator=generator).to(param.device, param.dtype)
        param.grad = None if (step, number) == (1, 0) else grad  # one is missing once


def same(a: list[nn.Parameter], b: list[nn.Parameter]) -> bool:
    return all(torch.equal(x.detach().cpu(), y.detach().cpu()) for x, y in zip(a, b, strict=True))


def tensors(state: dict[str, Any]) -> dict[tuple[int, str], Tensor]:
    return {
        (number, key): value.cpu()
        for number, entries in state["state"].items()
        for key, value in entries.items()
        if isinstance(value, Tensor)
    }


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("part_bytes", [SMALL, 2**30])
def test_it_has_the_bits_and_the_state_of_what_it_wraps(name: str, part_bytes: int) -> None:
    plain_params, params = net(), net()
    plain, offloaded = KINDS[name](groups(plain_params)), KINDS[name](groups(params))
    offloaded = Offload(offloaded, part_bytes)
    for step in range(6):
        for optimizer, own in ((plain, plain_params), (offloaded, params)):
            set_grads(own, step)
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (step + 1)
            if step == 4:
                clip_gradients(optimizer, 0.3)
            optimizer.step()
        assert same(plain_params, params), step
    expected, found = tensors(plain.state_dict()), tensors(offloaded.state_dict())
    assert expected.keys() == found.keys() and expected
    for key, value in expected.items():
        assert value.dtype == found[key].dtype and torch.equal(value, found[key]), key


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("way", ["onto the host", "off the host"])
def test_a_checkpoint_goes_on_with_and_without(name: str, way: str) -> None:
    def wrapped(optimizer: torch.optim.Optimizer, on: bool) -> torch.optim.Optimizer:
        return Offload(optimizer, SMALL) if on else optimizer

    params = net()
    first = wrapped(KINDS[name](groups(params)), way == "off the host")
    for step in range(3):
        set_grads(params, step)
        first.step()
    later = net()
    with torch.no_grad():
        for old, new in zip(params, later, strict=True):
            new.copy_(old)
    second = wrapped(KINDS[name](groups(later)), way == "onto the host")
    second.load_state_dict(deepcopy(first.state_dict()))
    for step in range(3, 6):
        for optimizer, own in ((first, params), (second, later)):
            set_grads(own, step)
            optimizer.step()
    assert same(params, later)


def test_parameters_that_are_edited_are_noticed() -> None:
    plain_params, params = net()[:1], net()[:1]
    plain, offloaded = LARS(plain_params, lr=1.0), Offload(LARS(params, lr=1.0))
    for step in range(4):
        for optimizer, own in ((plain, plain_params), (offloaded, params)):
            set_grads(own, step)
            with torch.no_grad():
                own[0].mul_(0.5)
            optimizer.step()
    assert same(plain_params, params)


def test_loss_scaling_and_skipped_steps() -> None:
    plain_params, params = net()[:1], net()[:1]
    plain, offloaded = LAMB(plain_params, lr=0.1), Offload(LAMB(params, lr=0.1))
    for step in (0, 2, 3):
        for optimizer, own in ((plain, plain_params), (offloaded, params)):
            set_grads(own, step)
            scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
            scaler.scale(torch.zeros(()))
            if step == 2:
                own[0].grad[0, 0] = float("inf")
            scaler.step(optimizer)
    assert same(plain_params, params)


def test_norms_of_layers_are_those_of_the_devices_parameters() -> None:
    params = net()[:3]
    offloaded = Offload(LARS(params, lr=1.0, exclude="one_dimensional"), SMALL)
    assert layer_rates(offloaded) is offloaded
    assert layer_rates(Offload(SGD(net(), lr=0.1))) is None
    before = [float(param.detach().double().norm()) for param in params]
    set_grads(params, 0)
    offloaded.step()
    found = {id(param): norms for param, _, norms in offloaded.layer_norms()}
    for index in (0, 2):  # those that adapt
        assert float(found[id(params[index])][0]) == pytest.approx(before[index])
    assert [id(param) for param in offloaded.excluded()] == [id(params[1])]


def test_a_group_may_be_added() -> None:
    params = net()
    offloaded = Offload(SGD(params[:2], lr=0.1, momentum=0.9))
    offloaded.add_param_group({"params": params[2:], "lr": 0.2})
    alone = net()
    plain = SGD(alone[:2], lr=0.1, momentum=0.9)
    plain.add_param_group({"params": alone[2:], "lr": 0.2})
    for optimizer, own in ((plain, alone), (offloaded, params)):
        set_grads(own, 0)
        optimizer.step()
    assert same(alone, params)


def test_what_it_refuses() -> None:
    with pytest.raises(UserError, match="Offload: Adam; it takes SGD, SGDW, LARS or LAMB"):
        Offload(torch.optim.Adam(net()))
    params = net()
    stepped = SGD(params, lr=0.1, momentum=0.9)
    set_grads(params, 0)
    stepped.step()
    with pytest.raises(UserError, match="before its first step"):
        Offload(stepped)
    offloaded = Offload(SGD(net(), lr=0.1))
    with pytest.raises(ValueError, match="other parameter groups"):
        offloaded.load_state_dict(SGD(net()[:1], lr=0.1).state_dict())
    sparse = nn.Embedding(4, 2, sparse=True)
    sparse(torch.tensor([1])).sum().backward()
    with pytest.raises(UserError, match="sparse gradients"):
        Offload(SGD(sparse.parameters(), lr=0.1)).step()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", KINDS)
def test_from_a_gpu_it_has_the_bits_of_the_cpu(name: str) -> None:
    plain_params, params = net(), net("cuda")
    plain = KINDS[name](groups(plain_params))
    offloaded = Offload(KINDS[name](groups(params)), SMALL)
    for step in range(6):
        for optimizer, own in ((plain, plain_params), (offloaded, params)):
            set_grads(own, step)
            optimizer.step()
    if name != "lamb, clipped":  # whose norm the device adds up in its own order
        assert same(plain_params, params)
    for value in tensors(offloaded.state_dict()).values():
        assert value.device.type == "cpu"
