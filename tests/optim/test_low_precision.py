"""16-bit parameters: float32 masters, state to the bit, skipped steps; for every optimizer here."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from largebatch import _ops
from largebatch.optim import LAMB, LARS, SGD, SGDW, MuonWithAuxiliary, RMSpropWarmup

compiled = pytest.mark.skipif(_ops.face() == "reference", reason="the compiled ops are absent")
SIXTEEN_BIT = [torch.float16, torch.bfloat16]
DTYPES = [torch.float32, torch.float64, *SIXTEEN_BIT]


def muon(params: Iterable[nn.Parameter], lr: float, **options: Any) -> MuonWithAuxiliary:
    params = list(params)
    groups = [
        {"params": [p for p in params if (p.ndim == 2) == matrices], "muon": matrices}
        for matrices in (True, False)
    ]
    return MuonWithAuxiliary([group for group in groups if group["params"]], lr, **options)


def rmsprop_warmup(params: Iterable[nn.Parameter], lr: float, **options: Any) -> RMSpropWarmup:
    optimizer = RMSpropWarmup(params, lr, rmsprop_lr=lr / 5, weight_decay=0.01, **options)
    optimizer.set_epoch(10)  # half RMSprop, half SGD
    return optimizer


OURS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda params, lr, **o: SGD(params, lr, momentum=0.9, weight_decay=0.01, **o),
    "sgdw": lambda params, lr, **o: SGDW(params, lr, 0.9, nesterov=True, weight_decay=0.1, **o),
    "lars": lambda params, lr, **o: LARS(params, 100 * lr, weight_decay=0.01, **o),
    "lamb": lambda params, lr, **o: LAMB(params, lr, weight_decay=0.01, **o),
    "rmsprop_warmup": rmsprop_warmup,
    "muon": lambda params, lr, **o: muon(params, lr, weight_decay=0.01, **o),
}
BY_OPERATOR = ("sgd", "sgdw", "lars", "lamb")  # which take `fused`, `state_dtype`, loss scaling
FACES = [
    *(pytest.param(name, {"fused": True}, marks=compiled) for name in BY_OPERATOR),
    *((name, {"fused": False} if name in BY_OPERATOR else {}) for name in OURS),
]
STATES = [
    *((name, {}) for name in OURS),
    *((name, {"state_dtype": torch.bfloat16}) for name in BY_OPERATOR),
]


def net(dtype: torch.dtype) -> nn.Module:
    """One type, but for a layer in float32 beside 16-bit ones."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5))
    model = nn.Sequential(*layers).to(dtype).to(memory_format=torch.channels_last)
    if dtype in SIXTEEN_BIT:
        model[4].bias.data = model[4].bias.data.float()
    return model


def some_grads(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for param in model.parameters():
        grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        param.grad = grad.to(memory_format=torch.channels_last) if grad.ndim == 4 else grad


@pytest.mark.parametrize(("name", "face"), FACES)
@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
def test_updates_below_half_a_unit_add_up(
    name: str, face: dict[str, bool], dtype: torch.dtype
) -> None:
    """400 updates, each far below a 16-bit parameter's resolution, arrive as in float64."""
    narrow, wide = (nn.Parameter(torch.full((8, 8), 1.0, dtype=d)) for d in (dtype, torch.float64))
    # Steps of about 1e-4: a 20th of half a unit of bfloat16, a fifth of one of float16.
    lr = {"lamb": 1e-4, "lars": 1e-4, "muon": 1.4e-3}.get(name, 1e-5)
    optimizers = [OURS[name]([param], lr, **face) for param in (narrow, wide)]
    moved = [0.0]
    for _ in range(400):
        for param, optimizer in zip((narrow, wide), optimizers, strict=True):
            param.grad = torch.ones_like(param)
            optimizer.step()
        moved.append(1.0 - float(wide.detach()[0, 0]))
    unit = torch.finfo(dtype).eps
    assert max(b - a for a, b in itertools.pairwise(moved)) < 0.4 * unit / 2
    assert moved[-1] > 0.02
    assert float((narrow.double() - wide).detach().abs().max()) < 0.51 * unit
    master = optimizers[0].state[narrow]["master"]
    assert master.dtype == torch.float32
    assert float((master.double() - wide).detach().abs().max()) < 1e-5


@pytest.mark.parametrize("name", OURS)
def test_without_masters_such_updates_are_lost(name: str) -> None:
    param = nn.Parameter(torch.full((8, 8), 1.0, dtype=torch.bfloat16))
    optimizer = OURS[name]([param], 1e-5, master_weights=False)
    for _ in range(20):
        param.grad = torch.ones_like(param)
        optimizer.step()
    assert "master" not in optimizer.state[param]
    assert torch.equal(param.detach(), torch.ones_like(param))


@pytest.mark.parametrize(("name", "options"), STATES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_save_load_step_is_bit_identical(
    name: str, options: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    def begin() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = net(dtype)
        return model, OURS[name](model.parameters(), 0.01, **options)

    model, optimizer = begin()
    for step in range(3):
        some_grads(model, step)
        optimizer.step()
    torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "s.pt")
    again, restored = begin()
    weights, state = torch.load(tmp_path / "s.pt", weights_only=True)
    again.load_state_dict(weights)
    restored.load_state_dict(state)
    for step in range(3, 6):
        for m, o in ((model, optimizer), (again, restored)):
            some_grads(m, step)
            o.step()
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
        assert ("master" in optimizer.state[a]) == (a.dtype in SIXTEEN_BIT)
        assert optimizer.state[a].keys() == restored.state[b].keys()
        for key, value in optimizer.state[a].items():
            other = restored.state[b][key]
            assert value.dtype == other.dtype and torch.equal(value, other), key
            assert value.dtype not in SIXTEEN_BIT or "state_dtype" in options, key


@pytest.mark.parametrize(("name", "face"), FACES)
def test_types_mixed_within_a_group_step_as_each_alone(name: str, face: dict[str, bool]) -> None:
    torch.manual_seed(0)
    starts = [torch.randn(6, 4).to(dtype) for dtype in DTYPES]
    together, alone = ([nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    optimizers = [OURS[name](together, 0.01, **face)]
    optimizers += [OURS[name]([param], 0.01, **face) for param in alone]
    for _ in range(3):
        for param in (*together, *alone):
            param.grad = torch.sin(param.detach().float()).to(param.dtype)
        for optimizer in optimizers:
            optimizer.step()
    for a, b, start in zip(together, alone, starts, strict=True):
        assert torch.equal(a, b) and not torch.equal(a, start)
        if a.dtype in SIXTEEN_BIT:
            assert torch.equal(a.detach(), optimizers[0].state[a]["master"].to(a.dtype))


@pytest.mark.parametrize("fused", [pytest.param(True, marks=compiled), False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", BY_OPERATOR)
def test_the_loss_scaler_skips_and_unscales_inside_the_step(
    name: str, dtype: torch.dtype, fused: bool
) -> None:
    scaled, plain = net(dtype), net(dtype)
    a, b = (OURS[name](m.parameters(), 0.01, fused=fused) for m in (scaled, plain))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(5):
        some_grads(scaled, step)
        some_grads(plain, step)
        scaler.scale(torch.zeros(()))  # starts the scaler
        for param in scaled.parameters():
            param.grad *= scaler.get_scale()
        if step == 2:
            next(scaled.parameters()).grad[0] = math.inf
            before = [p.detach().clone() for p in scaled.parameters()]
            state = copy.deepcopy(a.state_dict()["state"])
        else:
            b.step()
        scaler.step(a)
        scaler.update()
        if step == 2:  # a skipped step changes nothing
            assert all(torch.equal(x, y) for x, y in zip(before, scaled.parameters(), strict=True))
            now = a.state_dict()["state"]
            for number, entries in state.items():
                assert all(torch.equal(v, now[number][k]) for k, v in entries.items())
    for x, y in zip(scaled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=2e-6, atol=1e-7)


def without_masters(state_dict: dict[str, Any]) -> dict[str, Any]:
    """State as SGD and Muon saved it before they had masters."""
    state = copy.deepcopy(state_dict)
    for group in state["param_groups"]:
        for key in ("master_weights", "state_dtype"):
            group.pop(key, None)
    for entries in state["state"].values():
        entries.pop("master", None)
    return state


@pytest.mark.parametrize("name", ["sgd", "sgdw", "muon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_without_masters_goes_on(name: str, dtype: torch.dtype) -> None:
    model = net(dtype)
    optimizer = OURS[name](model.parameters(), 0.01)
    some_grads(model, 0)
    optimizer.step()
    again = copy.deepcopy(model)
    restored = OURS[name](again.parameters(), 1.0)
    restored.load_state_dict(without_masters(optimizer.state_dict()))
    for m, o in ((model, optimizer), (again, restored)):
        some_grads(m, 1)
        o.step()
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        if a.dtype == torch.float32:
            assert torch.equal(a, b)
        else:  # whose master began at the rounded parameter
            torch.testing.assert_close(a, b, rtol=2 * torch.finfo(a.dtype).eps, atol=1e-3)


@pytest.mark.parametrize("name", OURS)
def test_gradients_are_never_written(name: str) -> None:
    model = net(torch.bfloat16)
    optimizer = OURS[name](model.parameters(), 0.01)
    for step in range(2):
        some_grads(model, step)
        before = [param.grad.clone() for param in model.parameters()]
        optimizer.step()
        assert all(torch.equal(g, p.grad) for g, p in zip(before, model.parameters(), strict=True))
