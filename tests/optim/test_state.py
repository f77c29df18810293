"""State of runs in another type and of other libraries: converted or refused at load."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch.optim import LAMB, LARS, SGD, SGDW, MuonWithAuxiliary, Offload, RMSpropWarmup

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SIXTEEN_BIT = (torch.float16, torch.bfloat16)


def muon(params: Any) -> MuonWithAuxiliary:
    params = list(params)
    matrices = [param for param in params if param.ndim == 2]
    others = [param for param in params if param.ndim != 2]
    return MuonWithAuxiliary([{"params": matrices, "muon": True}, {"params": others}], lr=0.01)


KINDS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda params: SGD(params, 0.1, momentum=0.9),
    "plain sgd": lambda params: SGD(params, 0.1),
    "sgdw": lambda params: SGDW(params, 0.1, momentum=0.9, weight_decay=0.1),
    "lars": lambda params: LARS(params, 0.1, weight_decay=0.1),
    "lamb": lambda params: LAMB(params, 0.02),
    "rmsprop_warmup": lambda params: RMSpropWarmup(params, 0.1),
    "offloaded": lambda params: Offload(LAMB(params, 0.02)),
    "muon": muon,
}


def net(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)).to(dtype)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for param in model.parameters():
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        optimizer.step()


def flat(model: nn.Module) -> Tensor:
    return torch.cat([param.detach().double().flatten() for param in model.parameters()])


def check_types(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for param in group["params"]:
            state = optimizer.state.get(param, {})
            wide = torch.float64 if param.dtype == torch.float64 else torch.float32
            held = {k: v.dtype for k, v in state.items() if k not in ("step", "master")}
            assert set(held.values()) <= {wide}, held
            assert ("master" in state) == (param.dtype in SIXTEEN_BIT)
            assert state.get("step", torch.zeros(())).dtype == torch.float32


@pytest.mark.filterwarnings("ignore:the state holds float32 masters")
@pytest.mark.parametrize("how", ["load", "model.to"])
@pytest.mark.parametrize("after", DTYPES)
@pytest.mark.parametrize("before", DTYPES)
@pytest.mark.parametrize("name", KINDS)
def test_a_run_goes_on_in_any_other_type(
    name: str, before: torch.dtype, after: torch.dtype, how: str
) -> None:
    if name == "muon" and how == "model.to" and torch.float64 in (before, after) != (before,) * 2:
        pytest.skip("torch's AdamW keeps its moments in the type that they began in")
    model = net(before)
    optimizer = KINDS[name](model.parameters())
    train(model, optimizer, range(3))
    if how == "load":
        other = net(after)
        other.load_state_dict(model.state_dict())
        restored = KINDS[name](other.parameters())
        restored.load_state_dict(optimizer.state_dict())
        if name != "plain sgd" and after not in SIXTEEN_BIT:
            check_types(restored)  # at once, before any step
    else:
        other, restored = copy.deepcopy((model, optimizer))
        other.to(after)
    train(other, restored, range(3, 5))
    check_types(restored)
    train(model, optimizer, range(3, 5))
    coarse = max(torch.finfo(before).eps, torch.finfo(after).eps, 1e-6)
    torch.testing.assert_close(flat(other), flat(model), rtol=8 * coarse, atol=8 * coarse)
    restored.load_state_dict(restored.state_dict())
    check_types(restored)


def test_dropped_masters_are_told_of_and_kept_ones_are_not() -> None:
    states = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = net(dtype)
        optimizer = LAMB(model.parameters())
        train(model, optimizer, range(1))
        states[dtype] = optimizer.state_dict()
    with pytest.warns(UserWarning, match="holds float32 masters"):
        LAMB(net(torch.float32).parameters()).load_state_dict(states[torch.bfloat16])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in DTYPES:
            source = torch.bfloat16 if dtype in SIXTEEN_BIT else torch.float32
            LAMB(net(dtype).parameters()).load_state_dict(states[source])


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("plain sgd", "muon")])
def test_state_that_cannot_be_is_refused_and_nothing_changes(name: str) -> None:
    model = net(torch.float32)
    optimizer = KINDS[name](model.parameters())
    train(model, optimizer, range(1))
    moment = next(key for key in optimizer.state_dict()["state"][0] if key != "step")
    for wrong, said in (
        (torch.ones(7), r"has the shape \(7,\), the parameter \(6, 4\)"),
        (torch.ones(6, 4, dtype=torch.int32), r"is of type torch\.int32"),
        ([1.0], "is of type list"),
    ):
        state = copy.deepcopy(optimizer.state_dict())
        state["state"][0][moment] = wrong
        state["param_groups"][0]["lr"] = 7.0
        before = copy.deepcopy(optimizer.state_dict())
        with pytest.raises(UserError, match=said) as caught:
            optimizer.load_state_dict(state)
        assert moment in str(caught.value)
        after = optimizer.state_dict()
        assert after["param_groups"] == before["param_groups"]
        assert torch.equal(after["state"][0][moment], before["state"][0][moment])
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"][0]["weight_decay"] = math.nan
    with pytest.raises(UserError, match="weight_decay=nan"):
        optimizer.load_state_dict(state)


def test_two_optimizers_do_not_share_what_one_loads() -> None:
    one, other = net(torch.float32), net(torch.float32)
    first, second = LAMB(one.parameters()), LAMB(other.parameters())
    train(one, first, range(2))
    second.load_state_dict(first.state_dict())
    train(other, second, range(2, 3))
    assert {float(state["step"]) for state in first.state.values()} == {2.0}
    assert {float(state["step"]) for state in second.state.values()} == {3.0}


# States that other optimizers leave.


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("missing", [(), ("fused",), ("fused", "foreach", "differentiable",
                                                      "maximize", "nesterov")])  # fmt: skip
def test_torchs_sgd_of_any_age(momentum: float, missing: tuple[str, ...]) -> None:
    one, other = net(torch.float32), net(torch.float32)
    theirs = torch.optim.SGD(one.parameters(), 0.1, momentum)
    train(one, theirs, range(2))
    other.load_state_dict(one.state_dict())
    state = theirs.state_dict()
    for key in missing:
        del state["param_groups"][0][key]
    ours = SGD(other.parameters(), 0.5)
    ours.load_state_dict(state)
    train(one, theirs, range(2, 4))
    train(other, ours, range(2, 4))
    torch.testing.assert_close(flat(other), flat(one), rtol=1e-6, atol=1e-7)


def test_torchs_rmsprop_without_maximize() -> None:
    model = net(torch.float32)
    theirs = torch.optim.RMSprop(model.parameters(), 0.1, momentum=0.5)
    train(model, theirs, range(1))
    state = theirs.state_dict()
    for key in ("maximize", "foreach", "capturable", "differentiable"):
        del state["param_groups"][0][key]
    ours = RMSpropWarmup(model.parameters(), 0.5)
    ours.load_state_dict(state)
    assert ours.param_groups[0]["base_lr"] == 0.1
    train(model, ours, range(1, 2))
    assert torch.isfinite(flat(model)).all()


def test_a_state_without_momentum_is_empty() -> None:
    for dtype in DTYPES:
        model = net(dtype)
        optimizer = SGD(model.parameters(), 0.1, master_weights=False)
        train(model, optimizer, range(2))
        assert optimizer.state_dict()["state"] == {} == dict(optimizer.state)


def lamb_by_hand(
    weights: list[Tensor], steps: range, correction: str, moments: list[list[Tensor]] | None = None
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """LAMB as its sources write it, in float64."""
    weights = [weight.double() for weight in weights]
    moments = moments or [[torch.zeros_like(w), torch.zeros_like(w)] for w in weights]
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        t = step + 1
        for weight, (m, v) in zip(weights, moments, strict=True):
            grad = torch.randn(weight.shape, generator=generator).double()
            m.mul_(0.9).add_(0.1 * grad)
            v.mul_(0.999).add_(0.001 * grad**2)
            c1, c2 = 1 - 0.9**t, 1 - 0.999**t
            rate = 0.02
            if correction == "moments":
                update = (m / c1) / ((v / c2).sqrt() + 1e-6)
            else:
                update = m / (v.sqrt() + 1e-6)
                rate *= math.sqrt(c2) / c1 if correction == "rate" else 1.0
            update = update + 0.01 * weight
            weight.sub_(rate * (weight.norm() / update.norm()) * update)
    return weights, moments


# Where each library counts steps, and what True means there.
SOURCES: dict[str, dict[str, Any]] = {
    "torch_optimizer": {"step": int, "correction": "none", "group": {}},
    "DeepSpeed": {
        "step": int,
        "correction": "rate",
        "group": {"bias_correction": True, "max_grad_norm": 0.0, "max_coeff": 1e9, "min_coeff": 0},
    },
    "float step": {"step": float, "correction": "moments", "group": {"bias_correction": True}},
    "timm": {
        "step": None,
        "correction": "moments",
        "group": {
            "bias_correction": True,
            "grad_averaging": True,
            "max_grad_norm": None,
            "trust_clip": False,
            "always_adapt": False,
            "caution": False,
        },
    },
    "apex": {"step": None, "correction": "none", "group": {"bias_correction": 0}},
    "tensor step": {"step": lambda n: torch.tensor([n]), "correction": "moments", "group": {}},
}


@pytest.mark.parametrize("source", SOURCES)
def test_states_of_other_lambs_go_on(source: str) -> None:
    about = SOURCES[source]
    model = net(torch.float64)
    start = [param.detach().clone() for param in model.parameters()]
    weights, moments = lamb_by_hand(start, range(3), about["correction"])
    for param, weight in zip(model.parameters(), weights, strict=True):
        param.data.copy_(weight)
    group = {"lr": 0.02, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01}
    group = {**group, **about["group"], "params": [0, 1, 2, 3]}
    states: dict[int, dict[str, Any]] = {}
    for number, (m, v) in enumerate(moments):
        states[number] = {"exp_avg": m.clone(), "exp_avg_sq": v.clone()}
        if about["step"] is None:
            group["step"] = 3
        else:
            states[number]["step"] = about["step"](3)
    preset = {"rate": "deepspeed", "none": "author", "moments": "paper"}[about["correction"]]
    options: dict[str, Any] = {"preset": preset, "max_grad_norm": 0, "exclude": "none"}
    optimizer = LAMB(model.parameters(), 0.5, **options)
    optimizer.load_state_dict({"state": states, "param_groups": [group]})
    assert "step" not in optimizer.param_groups[0]
    train(model, optimizer, range(3, 6))
    weights, _ = lamb_by_hand(weights, range(3, 6), about["correction"], moments)
    for param, weight in zip(model.parameters(), weights, strict=True):
        torch.testing.assert_close(param.detach(), weight, rtol=1e-12, atol=1e-12)


def test_a_saved_clipping_norm_comes_back() -> None:
    optimizer = LAMB(net(torch.float32).parameters(), preset="nvlamb", max_grad_norm=0.25)
    other = LAMB(net(torch.float32).parameters())
    other.load_state_dict(optimizer.state_dict())
    assert other.max_grad_norm == 0.25
    other.max_grad_norm = 0.5
    assert other.state_dict()["param_groups"][0]["max_grad_norm"] == 0.5
    other.add_param_group({"params": [nn.Parameter(torch.ones(1))], "max_grad_norm": 2.0})
    with pytest.raises(UserError, match="one for all groups"):
        other.step()


def test_a_step_count_that_is_none() -> None:
    model = net(torch.float32)
    optimizer = LAMB(model.parameters())
    train(model, optimizer, range(1))
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["step"] = "three"
    with pytest.raises(UserError, match="three where a number"):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize("name", ["sgd", "sgdw", "lars", "lamb", "rmsprop_warmup"])
def test_a_full_state_dict_of_torchs_checkpoint(name: str) -> None:
    """Which returns lists for tuples."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    model, other = net(torch.float32), net(torch.float32)
    optimizer, restored = (KINDS[name](m.parameters()) for m in (model, other))
    train(model, optimizer, range(2))
    other.load_state_dict(model.state_dict())
    options = StateDictOptions(full_state_dict=True)
    state = get_optimizer_state_dict(model, optimizer, options=options)
    for group in state["param_groups"]:
        if "betas" in group:
            group["betas"] = list(group["betas"])
    set_optimizer_state_dict(other, restored, state, options=options)
    train(model, optimizer, range(2, 4))
    train(other, restored, range(2, 4))
    assert torch.equal(flat(model), flat(other))
