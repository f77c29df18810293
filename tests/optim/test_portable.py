"""Every optimizer and wrapper in other hands: copied, pickled, hooked, fed with odd numbers."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch.optim import (
    LAMB,
    LARS,
    SAM,
    SGD,
    SGDW,
    MuonWithAuxiliary,
    Offload,
    OptimConfig,
    RMSpropWarmup,
    build_optimizer,
    optimizers,
)

NAMES = [name for name in optimizers.names() if name not in ("apex_lamb", "deepspeed")]
Maker = Callable[[nn.Module], torch.optim.Optimizer]


def by_name(name: str) -> Maker:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(OptimConfig(name=name, lr=0.01, weight_decay=1e-3), model)

    return make


WRAPPERS: dict[str, Maker] = {
    "sam of sgd": lambda m: SAM(SGD(m.parameters(), 0.1, momentum=0.9), m, rho=0.2),
    "sam of adam": lambda m: SAM(by_name("adam")(m), m, rho=0.2),
    "offloaded sgd": lambda m: Offload(SGD(m.parameters(), 0.1, momentum=0.9)),
    "offloaded plain sgd": lambda m: Offload(SGD(m.parameters(), 0.1)),
    "offloaded lars": lambda m: Offload(LARS(m.parameters(), 0.1)),
    "offloaded lamb": lambda m: Offload(LAMB(m.parameters(), 0.1, max_grad_norm=0.1), 64),
    "clipping lamb": lambda m: LAMB(m.parameters(), 0.1, preset="nvlamb", max_grad_norm=0.1),
    "damped sgd": lambda m: SGD(m.parameters(), 0.1, momentum=0.9, dampening=0.5),
    "plain sgd": lambda m: SGD(m.parameters(), 0.1),
    "split lamb": lambda m: LAMB([{"params": m.parameters(), "split": "rows"}], 0.1),
    "bfloat16 moments": lambda m: LAMB(m.parameters(), 0.1, state_dtype=torch.bfloat16),
}
MAKERS: dict[str, Maker] = {**{name: by_name(name) for name in NAMES}, **WRAPPERS}
OURS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda params, **options: SGD(params, 0.1, momentum=0.9, **options),
    "sgdw": lambda params, **options: SGDW(params, 0.1, momentum=0.9, **options),
    "lars": lambda params, **options: LARS(params, 0.1, weight_decay=0.1, **options),
    "lamb": lambda params, **options: LAMB(params, 0.1, **options),
    "rmsprop_warmup": lambda params, **options: RMSpropWarmup(params, 0.1, **options),
}


def net(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def some_grads(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for param in model.parameters():
        grad = torch.randn(param.shape, generator=generator, dtype=torch.float64)
        param.grad = grad.to(param.dtype)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        some_grads(model, step)
        if isinstance(optimizer, SAM):
            with optimizer.perturbed():
                some_grads(model, step + 100)
        optimizer.step()


def through_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def through_torch(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([param.detach().flatten() for param in model.parameters()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", [copy.deepcopy, through_pickle, through_torch])
@pytest.mark.parametrize("name", MAKERS)
def test_a_copy_goes_on_like_the_original(name: str, how: Any, dtype: torch.dtype) -> None:
    model = net(dtype)
    optimizer = MAKERS[name](model)
    train(model, optimizer, range(2))
    twin, other = how((model, optimizer))
    assert type(other) is type(optimizer)
    assert repr(other) == repr(optimizer)
    public = {key for key in vars(optimizer) if not key.startswith("_")}
    assert {key for key in vars(other) if not key.startswith("_")} >= public - {"step"}
    for each in (twin, model):  # in turn: neither works on the other's tensors
        train(each, other if each is twin else optimizer, range(2, 4))
    assert torch.equal(flat(model), flat(twin))
    saved = copy.deepcopy(other.state_dict())
    train(twin, other, range(4, 5))
    again, third = copy.deepcopy((model, other))
    for param, of in zip(again.parameters(), model.parameters(), strict=True):
        param.data.copy_(of.data)
    third = MAKERS[name](again)
    third.load_state_dict(saved)
    train(again, third, range(4, 5))
    assert torch.equal(flat(again), flat(twin))


def test_a_pending_clip_factor_and_the_switch_travel() -> None:
    model = net()
    optimizer = LAMB(model.parameters(), fused=False)
    optimizer.unscales = True
    optimizer.grad_factor = torch.tensor(0.5)
    other = copy.deepcopy(optimizer)
    assert other.unscales and float(other.grad_factor) == 0.5


def test_the_copy_of_torchs_own_loads_exactly_too() -> None:
    model, optimizer = copy.deepcopy((m := net(torch.float64), by_name("nadam")(m)))
    train(model, optimizer, range(1))
    optimizer.load_state_dict(optimizer.state_dict())
    states = optimizer.state.values()
    assert {state["mu_product"].dtype for state in states} == {torch.float32}


@pytest.mark.parametrize("name", MAKERS)
def test_hooks_see_steps_and_states(name: str) -> None:
    model = net()
    optimizer = MAKERS[name](model)
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    train(model, optimizer, range(1))
    assert seen == ["before", "after"]
    optimizer.register_state_dict_pre_hook(lambda _: seen.append("saving"))
    optimizer.register_state_dict_post_hook(lambda _, state: {**state, "note": 7})
    state = optimizer.state_dict()
    assert seen[2:] == ["saving"] and state["note"] == 7

    def halved(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        halve = {
            number: {
                key: value / 2 if isinstance(value, Tensor) and value.ndim else value
                for key, value in entries.items()
            }
            for number, entries in state["state"].items()
        }
        return {**state, "state": halve}

    optimizer.register_load_state_dict_pre_hook(halved)
    optimizer.register_load_state_dict_post_hook(lambda _: seen.append("loaded"))
    optimizer.load_state_dict(state)
    assert seen[3:] == ["loaded"]
    now = optimizer.state_dict()["state"]
    for number, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor) and value.ndim:
                assert torch.equal(now[number][key], value / 2), key


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "muon"])
def test_what_a_hook_after_the_load_changes_stays(name: str) -> None:
    model = net()
    optimizer = MAKERS[name](model)
    train(model, optimizer, range(1))

    def zeroed(loaded: torch.optim.Optimizer) -> None:
        for state in loaded.state.values():
            for key in state:
                state[key] = torch.zeros_like(torch.as_tensor(state[key]))

    optimizer.register_load_state_dict_post_hook(zeroed)
    optimizer.load_state_dict(optimizer.state_dict())
    for entries in optimizer.state_dict()["state"].values():
        assert all(not value.any() for value in entries.values())


@pytest.mark.parametrize("name", MAKERS)
def test_a_group_added_later_is_stepped(name: str) -> None:
    model = net()
    optimizer = MAKERS[name](model)
    train(model, optimizer, range(1))
    named = "param_names" in optimizer.param_groups[0]
    late = nn.Parameter(torch.ones(2, 2))
    optimizer.add_param_group({"params": [("late", late)] if named else [late], "lr": 0.5})
    late.grad = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    if isinstance(optimizer, SAM):
        optimizer.optimizer.step()
    else:
        optimizer.step()
    assert not torch.equal(late.detach(), torch.ones(2, 2))
    again = MAKERS[name](model)
    again.add_param_group({"params": [("late", late)] if named else [late]})
    again.load_state_dict(optimizer.state_dict())
    assert again.param_groups[-1]["lr"] == 0.5


@pytest.mark.parametrize("name", MAKERS)
def test_gradients_of_zero_are_no_missing_ones(name: str) -> None:
    model = net()
    optimizer = MAKERS[name](model)
    train(model, optimizer, range(1))
    optimizer.zero_grad(set_to_none=False)
    assert all(param.grad is not None and not param.grad.any() for param in model.parameters())
    optimizer.step()
    assert torch.isfinite(flat(model)).all()
    optimizer.zero_grad()
    assert all(param.grad is None for param in model.parameters())
    before = flat(model)
    optimizer.step()
    assert torch.equal(before, flat(model))


ODD: dict[str, Callable[[float], Any]] = {
    "numpy float32": np.float32,
    "numpy float64": np.float64,
    "numpy 0-d": np.array,
    "numpy of one": lambda value: np.array([value]),
    "0-d": torch.tensor,
    "of shape (1,)": lambda value: torch.tensor([value]),
    "float64": lambda value: torch.tensor(value, dtype=torch.float64),
    "bfloat16": lambda value: torch.tensor(value, dtype=torch.bfloat16),
}
NUMBERS = ("lr", "weight_decay", "momentum", "dampening", "eps", "trust_coefficient", "min_ratio",
           "max_ratio", "max_grad_norm", "alpha", "rmsprop_lr", "sgd_share", "base_lr")  # fmt: skip


@pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", OURS)
def test_numbers_in_groups_may_be_of_any_kind(name: str, odd: str) -> None:
    """Quarters and halves: every kind of number has them exactly."""
    settings = {"lr": 0.5, "weight_decay": 0.25, "momentum": 0.5, "eps": 2.0**-20, "alpha": 0.5}
    settings.update(trust_coefficient=2.0**-10, rmsprop_lr=2.0**-12, sgd_share=0.25, base_lr=0.5)
    paths = []
    for kind in (float, ODD[odd]):
        model = net()
        optimizer = OURS[name](model.parameters())
        group = optimizer.param_groups[0]
        for key in NUMBERS:
            if key in group:
                value = settings.get(key, group[key])
                group[key] = None if value is None else kind(value)
        if "betas" in group:
            group["betas"] = [kind(0.5), kind(0.75)]
        group["tags"] = ["a", {"list": []}]  # what a user notes in a group is no setting
        train(model, optimizer, range(2))
        state = copy.deepcopy(optimizer.state_dict())
        optimizer.load_state_dict(state)
        train(model, optimizer, range(2, 3))
        paths.append(flat(model))
    assert torch.allclose(*paths, rtol=1e-6)


@pytest.mark.parametrize("name", OURS)
def test_whole_numbers_will_do(name: str) -> None:
    model = net()
    optimizer = OURS[name](model.parameters())
    optimizer.param_groups[0].update(lr=1, weight_decay=0)
    train(model, optimizer, range(1))
    twin = net()
    other = OURS[name](twin.parameters())
    other.param_groups[0].update(lr=1.0, weight_decay=0.0)
    train(twin, other, range(1))
    assert torch.equal(flat(model), flat(twin))


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_a_tensor_in_a_group_may_change_in_place(name: str) -> None:
    model, twin = net(), net()
    decay = torch.tensor(0.5)
    optimizer = OURS[name](model.parameters())
    optimizer.param_groups[0]["weight_decay"] = decay
    other = OURS[name](twin.parameters())
    other.param_groups[0]["weight_decay"] = 0.5
    for step, value in enumerate((0.5, 0.25)):
        decay.fill_(value)
        other.param_groups[0]["weight_decay"] = value
        train(model, optimizer, range(step, step + 1))
        train(twin, other, range(step, step + 1))
    assert torch.equal(flat(model), flat(twin))


@pytest.mark.parametrize("name", OURS)
def test_what_cannot_be_stepped_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(UserError, match=r"parameters of type torch\.complex64") as caught:
        OURS[name]([nn.Parameter(torch.ones(2, dtype=torch.complex64))])
    assert "\n" not in str(caught.value)
    param = nn.Parameter(torch.ones(2, 2))
    optimizer = OURS[name]([param])
    param.grad = torch.eye(2).to_sparse()
    with pytest.raises(UserError, match="sparse gradients") as caught:
        optimizer.step()
    assert "\n" not in str(caught.value)
    with torch.inference_mode():
        frozen = nn.Parameter(torch.ones(2))
    with pytest.raises(UserError, match="inference_mode"):
        OURS[name]([frozen])


@pytest.mark.parametrize("name", MAKERS)
def test_parameters_on_meta_step_in_shapes_alone(name: str) -> None:
    if name.startswith(("sam", "offloaded")):
        pytest.skip("reads the norm, or moves values")
    model = net().to("meta")
    optimizer = MAKERS[name](model)
    for param in model.parameters():
        param.grad = torch.empty_like(param)
    optimizer.step()
    state = optimizer.state_dict()["state"]
    for entries in state.values():
        assert all(v.device.type == "meta" for v in entries.values() if isinstance(v, Tensor)
                   and v.ndim)  # fmt: skip


@pytest.mark.parametrize("name", MAKERS)
def test_autograd_notices_a_step_between_forward_and_backward(name: str) -> None:
    if name in ("adam", "adamw", "adagrad", "sam of adam"):
        pytest.skip("torch's own fused kernels do not tell")
    model = net()
    optimizer = MAKERS[name](model)
    loss = model(torch.randn(5, 4)).square().sum()
    some_grads(model, 0)
    if isinstance(optimizer, SAM):
        optimizer.optimizer.step()
    else:
        optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("lr", [torch.tensor([0.1, 0.2]), "fast", [0.1], None])
def test_a_rate_that_is_no_number_is_refused(name: str, lr: Any) -> None:
    with pytest.raises(UserError, match="where a number, or a tensor of one, is wanted"):
        OURS[name]([{"params": net().parameters(), "lr": lr}])


def test_muon_takes_matrices_and_others_later() -> None:
    weights = [nn.Parameter(torch.eye(3)) for _ in range(2)]
    bias = nn.Parameter(torch.ones(3))
    optimizer = MuonWithAuxiliary([{"params": weights[:1], "muon": True}], lr=0.1)
    optimizer.add_param_group({"params": weights[1:], "muon": True})
    optimizer.add_param_group({"params": [bias]})
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [bias]})
    assert len(optimizer.param_groups) == 3
    for param in (*weights, bias):
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert torch.equal(*(weight.detach() for weight in weights))
    assert not torch.equal(bias.detach(), torch.ones(3))
