"""torch's own list of optimizer settings (OptimizerInfo), with ours in place of torch's.

Settings, schedulers and invalid arguments are those of the installed torch's test library; each
check states one of the tests of its test_optim.py, which no wheel holds, in words of our own.
"""

from __future__ import annotations

import copy
import itertools
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path

import torch
from outcomes import Outcomes
from torch import nn
from torch.testing._internal.common_optimizers import OptimizerInput, optim_db

from largebatch.optim import LAMB, LARS, SGD, SGDW, RMSpropWarmup

BY_CLASS = {info.optim_cls: info for info in optim_db}
TORCH_SGD, TORCH_RMSPROP = BY_CLASS[torch.optim.SGD], BY_CLASS[torch.optim.RMSprop]
# Whose invalid arguments a class is given: those of the optimizer that it takes the place of.
INVALID = {RMSpropWarmup: TORCH_RMSPROP, LAMB: BY_CLASS[torch.optim.Adam]}
RATES = {"paper": 1.0, "mlperf": 0.001, "timm": 0.001, "larc": 0.001, "optax": 0.001}


def settings_of(kind):
    """The settings that each class is tried with."""
    if kind in (SGD, SGDW):
        found = TORCH_SGD.optim_inputs_func(device="cpu")
        extra = [
            {"momentum": 0.9, "dampening": 0.5, "lr": 0.01},
            {"momentum": 0.9, "lr_inside_momentum": True},
            {"momentum": 0.9, "state_dtype": torch.bfloat16},
        ]
    elif kind is LARS:
        found = [
            OptimizerInput(
                params=None, kwargs={"lr": RATES[p], "preset": p, "weight_decay": d}, desc=p
            )
            for p in ("paper", "mlperf", "timm", "larc", "optax")
            for d in (0.0, 0.1)
        ]
        extra = [{"momentum": 0.9, "nesterov": True}, {"maximize": True}]
    elif kind is LAMB:
        found = [
            OptimizerInput(params=None, kwargs={"lr": 0.01, "preset": p, "weight_decay": d}, desc=p)
            for p in ("paper", "nvlamb", "author", "deepspeed")
            for d in (0.0, 0.1)
        ]
        extra = [{"state_dtype": torch.bfloat16}, {"maximize": True}]
    else:
        found = [
            OptimizerInput(params=None, kwargs=dict(kwargs), desc="")
            for kwargs in (
                {},
                {"lr": 0.01},
                {"lr": 0.01, "weight_decay": 0.1},
                {"lr": 0.01, "maximize": True},
            )
        ]
        extra = []
    return [*found, *(OptimizerInput(params=None, kwargs=k, desc=str(k)) for k in extra)]


def inputs_of(kind):
    """These settings with each way to compute."""
    for each in settings_of(kind):
        for flags in (
            {},
            {"foreach": True},
            {"foreach": False},
            {"differentiable": False},
            *([{"fused": True}, {"fused": False}] if kind is not RMSpropWarmup else []),
        ):
            yield {**each.kwargs, **flags}


def net(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).to(dtype)


def closure_of(model, optimizer, seed=1):
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)).to(
        next(model.parameters()).dtype
    )

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().sum()
        loss.backward()
        return loss

    return closure


def values(model):
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


def descends(kind, kwargs, schedulers, lr=None):
    """The loss falls (rises, if maximized), with every scheduler of torch's list."""
    model = net()
    optimizer = kind(model.parameters(), **kwargs)
    made = [s(optimizer) for s in schedulers]
    closure = closure_of(model, optimizer)
    first = closure().item()
    for _ in range(20):
        loss = optimizer.step(closure)
        for scheduler in made:
            scheduler.step(loss) if isinstance(
                scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau
            ) else scheduler.step()
    last = closure().item()
    assert last > first if kwargs.get("maximize") else last < first, (first, last)


def check_forloop_goes_right(kind, kwargs):
    descends(kind, kwargs, [])


def check_with_schedulers(kind, kwargs):
    for schedulers in TORCH_SGD.scheduler_inputs:
        descends(kind, copy.deepcopy(kwargs), schedulers)  # they change a tensor rate in place


def check_tensor_lr(kind, kwargs):
    found = []
    for lr in (
        0.01,
        torch.tensor(0.01),
        torch.tensor([0.01]),
        torch.tensor(0.01, dtype=torch.float64),
    ):
        model = net()
        optimizer = kind(model.parameters(), **{**kwargs, "lr": lr})
        for seed in range(3):
            closure_of(model, optimizer, seed)()
            optimizer.step()
        found.append(values(model))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-6)


def check_param_group_lr(kind, kwargs):
    model = net()
    params = list(model.parameters())
    optimizer = kind([{"params": params[:2], "lr": 0.0}, {"params": params[2:]}], **kwargs)
    before = [p.detach().clone() for p in params]
    closure_of(model, optimizer)()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before[:2], params[:2], strict=False))
    assert not all(torch.equal(a, b) for a, b in zip(before[2:], params[2:], strict=False))


def check_param_group_weight_decay(kind, kwargs):
    if kwargs.get("preset") == "larc":
        return  # NVIDIA's LARC leaves out the decay, too, where there is no gradient
    model = net()
    params = list(model.parameters())
    optimizer = kind(
        [{"params": params[:2], "weight_decay": 0.9}, {"params": params[2:], "weight_decay": 0.0}],
        **{**kwargs, "lr": 0.05},
    )
    for param in params:
        param.grad = torch.zeros_like(param)
    before = [p.detach().clone() for p in params]
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before[2:], params[2:], strict=False))
    assert not all(torch.equal(a, b) for a, b in zip(before[:2], params[:2], strict=False))


def check_duplicate_named_params(kind, kwargs):
    model = net()
    named, plain = kind(model.named_parameters(), **kwargs), kind(model.parameters(), **kwargs)
    assert "param_names" in named.state_dict()["param_groups"][0]
    plain.load_state_dict(named.state_dict())
    named.load_state_dict(plain.state_dict())
    assert named.param_groups[0]["param_names"][0] == "0.weight"


def check_complex_refused(kind, kwargs):
    try:
        kind([nn.Parameter(torch.ones(2, dtype=torch.complex64))], **kwargs)
    except ValueError:
        return
    raise AssertionError("accepted")


def check_state_dict_deterministic(kind, kwargs):
    model = net()
    optimizer = kind(model.parameters(), **kwargs)
    for seed in range(3):
        closure_of(model, optimizer, seed)()
        optimizer.step()
    twin = copy.deepcopy(model)
    other = kind(twin.parameters(), **kwargs)
    saved = copy.deepcopy(optimizer.state_dict())
    other.load_state_dict(saved)
    for seed in range(3, 6):
        for m, o in ((model, optimizer), (twin, other)):
            closure_of(m, o, seed)()
            o.step()
        assert torch.equal(values(model), values(twin))
    assert repr(saved["param_groups"]) == repr(optimizer.state_dict()["param_groups"])


def check_can_load_older_state_dict(kind, kwargs):
    for missing in (
        ("maximize",),
        ("foreach", "fused", "differentiable", "nesterov", "maximize", "capturable"),
    ):
        model = net()
        optimizer = kind(model.parameters(), **kwargs)
        closure = closure_of(model, optimizer)
        optimizer.step(closure)
        state = copy.deepcopy(optimizer.state_dict())
        for group, key in itertools.product(state["param_groups"], missing):
            group.pop(key, None)
        for entries in state["state"].values():
            if torch.is_tensor(entries.get("step")):
                entries["step"] = int(entries["step"])
        optimizer.load_state_dict(state)
        optimizer.step(closure)


def check_state_dict_with_casts(kind, kwargs):
    for before, after in itertools.permutations(
        (torch.float32, torch.float64, torch.bfloat16, torch.float16), 2
    ):
        model = net(before)
        optimizer = kind(model.parameters(), **kwargs)
        optimizer.step(closure_of(model, optimizer))
        twin = copy.deepcopy(model).to(after)
        other = kind(twin.parameters(), **kwargs)
        other.load_state_dict(optimizer.state_dict())
        other.step(closure_of(twin, other))
        assert torch.isfinite(values(twin)).all()


def check_save_load_equality_with_weights_only(kind, kwargs):
    model = net()
    optimizer = kind(model.parameters(), **kwargs)
    optimizer.step(closure_of(model, optimizer))
    with tempfile.TemporaryDirectory() as folder:
        torch.save(optimizer.state_dict(), Path(folder) / "s")
        loaded = torch.load(Path(folder) / "s", weights_only=True)
    assert repr(loaded) == repr(optimizer.state_dict())


def check_load_nontensor_step(kind, kwargs):
    model = net()
    optimizer = kind(model.parameters(), **kwargs)
    closure = closure_of(model, optimizer)
    optimizer.step(closure)
    for turn in (int, float, lambda s: torch.tensor([int(s)])):
        state = copy.deepcopy(optimizer.state_dict())
        for entries in state["state"].values():
            if "step" in entries:
                entries["step"] = turn(entries["step"])
        optimizer.load_state_dict(state)
        optimizer.step(closure)


def check_deepcopy_copies_all_public_attrs(kind, kwargs):
    def public(o):
        return {k for k in vars(o) if not k.startswith("_")}

    model = net()
    for steps in (0, 2):
        optimizer = kind(model.parameters(), **kwargs)
        for _ in range(steps):
            optimizer.step(closure_of(model, optimizer))
        assert public(optimizer) == public(copy.deepcopy(optimizer)), public(optimizer) ^ public(
            copy.deepcopy(optimizer)
        )


def check_step_is_noop_when_params_have_no_grad(kind, kwargs):
    model = net()
    optimizer = kind(model.parameters(), **kwargs)
    before = values(model)
    optimizer.step()
    assert torch.equal(before, values(model))


def check_step_is_noop_for_zero_grads(kind, kwargs):
    if kwargs.get("weight_decay", 0.01 if kind is LAMB else 0.0):
        return
    model = net()
    optimizer = kind(model.parameters(), **kwargs)
    before = values(model)
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    assert torch.equal(before, values(model))


def check_can_be_printed(kind, kwargs):
    repr(kind(net().parameters(), **kwargs))


def check_hooks(kind, kwargs):
    model = net()
    optimizer = kind(model.parameters(), **kwargs)
    seen = []
    handles = [
        optimizer.register_step_pre_hook(lambda *_: seen.append(1)),
        optimizer.register_step_post_hook(lambda *_: seen.append(2)),
    ]
    optimizer.step(closure_of(model, optimizer))
    assert seen == [1, 2]
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert seen == [1, 2]


def check_state_dict_hooks(kind, kwargs):
    model = net()
    optimizer = kind(model.parameters(), **kwargs)
    optimizer.register_state_dict_post_hook(lambda _, state: {**state, "test": True})
    assert optimizer.state_dict()["test"]
    optimizer.register_load_state_dict_pre_hook(
        lambda _, state: {
            **state,
            "param_groups": [{**g, "lr": 0.002} for g in state["param_groups"]],
        }
    )
    optimizer.register_load_state_dict_post_hook(lambda o: o.state.__setitem__("test", True))
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.002 and optimizer.state["test"]


def check_non_empty_state(kind, kwargs):
    model = net()
    optimizer = kind(model.parameters(), **kwargs)
    optimizer.step(closure_of(model, optimizer))
    for state in optimizer.state.values():
        assert len(state) > 0


def check_peak_memory(kind, kwargs):
    """No tensor of a parameter's size is left behind but state."""
    import gc

    model = net()
    optimizer = kind(model.parameters(), **kwargs)
    for _ in range(2):
        optimizer.step(closure_of(model, optimizer))
    gc.collect()
    count = sum(1 for o in gc.get_objects() if type(o) is torch.Tensor)
    for _ in range(3):
        optimizer.step(closure_of(model, optimizer))
    gc.collect()
    assert sum(1 for o in gc.get_objects() if type(o) is torch.Tensor) <= count + 1


def check_errors(kind, kwargs):
    for error in INVALID.get(kind, TORCH_SGD).optim_error_inputs_func(
        device="cpu", dtype=torch.float32
    ):
        given = error.optimizer_error_input
        if "foreach" in given.kwargs or (
            "betas" in error.error_regex and "Tensor" in error.error_regex
        ):
            continue  # refusals of what torch's ways to compute cannot do, and ours can
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                kind(given.params, **given.kwargs)
            raised = [w.category for w in told]
        except (TypeError, ValueError, RuntimeError) as found:
            raised = [type(found)]
        wanted = error.error_type
        if given.params is None:  # torch looks at the rate first; with parameters the classes agree
            try:
                kind([nn.Parameter(torch.ones(1))], **given.kwargs)
                raised = []
            except (TypeError, ValueError, RuntimeError) as found:
                raised = [type(found)]
        assert any(issubclass(r, wanted) for r in raised), (given.desc, raised, wanted)


CHECKS = [value for name, value in sorted(globals().items()) if name.startswith("check_")]


def every_setting(kind, check):
    """Run a check with all settings of a class; name how many fail, and the first reason."""
    cases, wrong = list(inputs_of(kind)), []
    for kwargs in cases:
        try:
            check(kind, copy.deepcopy(kwargs))
        except Exception as error:
            wrong.append(f"{kwargs}: {type(error).__name__}: {error}")
    assert not wrong, f"{len(wrong)} of {len(cases)} settings; {wrong[0]}"


def main() -> None:
    warnings.simplefilter("ignore")
    outcomes = Outcomes(sys.argv[1])
    for kind, check in itertools.product((SGD, SGDW, LARS, LAMB, RMSpropWarmup), CHECKS):
        name = check.__name__.removeprefix("check_").replace("_", " ")
        outcomes.check(f"{kind.__name__}: {name}", partial(every_setting, kind, check))


if __name__ == "__main__":
    main()
