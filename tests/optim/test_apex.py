"""States of apex's LAMB to ours and back, and the back end where apex is not what is asked for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch.optim import LAMB, OptimConfig, build_optimizer, from_apex, to_apex

SHAPES = ((4, 3), (4,))


def params_of(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in SHAPES]


def groups_of(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [
        {"params": params[:1], "weight_decay": 0.01},
        {"params": params[1:], "weight_decay": 0.0},
    ]


def set_grads(params: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(50 + step)
    for param in params:
        param.grad = (0.1 * torch.randn(param.shape, generator=generator)).to(param.dtype)


def run(params: list[nn.Parameter], optimizer: LAMB, steps: range) -> None:
    for step in steps:
        set_grads(params, step)
        optimizer.step()


def apex_state(mixed: bool) -> tuple[dict[str, Any], list[Tensor]]:
    """Return a state as apex's source writes it, and its parameters' moments."""
    generator = torch.Generator().manual_seed(3)
    moments = [torch.rand(s, generator=generator).double() + 0.1 for s in SHAPES for _ in range(2)]
    state = {
        number: {
            "exp_avg": moments[2 * number].float(),
            "exp_avg_sq": moments[2 * number + 1].float(),
        }
        for number in range(2)
    }
    shared = {
        "lr": torch.tensor(0.1) if mixed else 0.1,
        "step": torch.tensor([7], dtype=torch.int32) if mixed else 7,
        "bias_correction": True,
        "betas": (0.9, 0.999),
        "eps": 1e-6,
        "grad_averaging": True,
        "max_grad_norm": 1.0,
    }
    groups = [
        {**shared, "weight_decay": 0.01, "params": [0]},
        {**shared, "weight_decay": 0.0, "params": [1]},
    ]
    return {"state": state, "param_groups": groups}, moments


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("use_nvlamb", [False, True])
def test_the_next_step_is_that_of_apexs_formula(mixed: bool, use_nvlamb: bool) -> None:
    state, moments = apex_state(mixed)
    params = params_of()
    start = [param.detach().double() for param in params]
    optimizer = LAMB(groups_of(params), 1.0, preset="nvlamb")
    optimizer.load_state_dict(from_apex(state, use_nvlamb))
    run(params, optimizer, range(1))
    grads = [param.grad.double() for param in params]
    total = torch.cat([grad.flatten() for grad in grads]).norm()
    for index, (param, w, decay) in enumerate(zip(params, start, (0.01, 0.0), strict=True)):
        g = grads[index] / max(1.0, float(total))
        m = 0.9 * moments[2 * index].float().double() + 0.1 * g
        v = 0.999 * moments[2 * index + 1].float().double() + 0.001 * g * g
        u = m / (1 - 0.9**8) / ((v / (1 - 0.999**8)).sqrt() + 1e-6) + decay * w
        ratio = w.norm() / u.norm() if use_nvlamb or decay else 1.0
        torch.testing.assert_close(param.double(), w - 0.1 * ratio * u, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mixed", [False, True])
def test_there_and_back_goes_on_bit_by_bit(mixed: bool) -> None:
    params, others = params_of(), params_of()
    ours = LAMB(groups_of(params), 0.02, preset="nvlamb")
    run(params, ours, range(5))
    state = to_apex(ours.state_dict(), mixed)
    assert {type(group["step"]) for group in state["param_groups"]} == {Tensor if mixed else int}
    again = LAMB(groups_of(others), 1.0, preset="nvlamb")
    with torch.no_grad():
        for a, b in zip(others, params, strict=True):
            a.copy_(b)
    loaded = from_apex(state, use_nvlamb=True)
    again.load_state_dict(loaded)
    for group, other in zip(ours.param_groups, again.param_groups, strict=True):
        other["lr"] = group["lr"]  # a float32 tensor in between
    run(params, ours, range(5, 9))
    run(others, again, range(5, 9))
    for a, b in zip(params, others, strict=True):
        assert torch.equal(a, b)


def test_masters_begin_at_the_parameters() -> None:
    params = params_of(torch.float16)
    optimizer = LAMB(groups_of(params), 1e-6, preset="nvlamb")
    state, _ = apex_state(True)
    before = [param.detach().clone() for param in params]
    optimizer.load_state_dict(from_apex(state))
    for group in optimizer.param_groups:
        group["lr"] = 1e-6  # far below the resolution
    run(params, optimizer, range(3))
    for param, old in zip(params, before, strict=True):
        master = optimizer.state[param]["master"]
        assert not torch.equal(master, old.float())
        torch.testing.assert_close(master, old.float(), rtol=1e-3, atol=1e-4)


def test_what_apex_cannot_say() -> None:
    params = params_of()
    by_rate = LAMB(params, 0.1, preset="deepspeed")
    with pytest.raises(UserError, match="bias_correction='rate'"):
        to_apex(by_rate.state_dict())
    uneven = LAMB(params, 0.1)
    set_grads(params, 0)
    uneven.step()
    params[0].grad = None
    uneven.step()
    with pytest.raises(UserError, match=r"steps \[1, 2\]"):
        to_apex(uneven.state_dict())


def test_the_back_end_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, model = OptimConfig(name="apex_lamb", lr=0.01), nn.Linear(2, 2)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    unrelated = tmp_path / "apex"
    unrelated.mkdir()
    (unrelated / "__init__.py").write_text("raise SystemExit('never imported')\n")
    with pytest.raises(UserError, match=r"the installed package apex is not NVIDIA's; build it"):
        build_optimizer(config, model)
    for folder in ("multi_tensor_apply", "optimizers"):
        (unrelated / folder).mkdir()
    (unrelated / "__init__.py").write_text("")
    (unrelated / "optimizers" / "__init__.py").write_text("")
    with pytest.raises(UserError, match=r"apex has no FusedLAMB"):
        build_optimizer(config, model)
    for name in [name for name in sys.modules if name.split(".")[0] == "apex"]:
        del sys.modules[name]  # monkeypatch would bring it back
    (unrelated / "optimizers" / "__init__.py").write_text(
        "from torch.optim import AdamW as FusedLAMB\n"
    )
    assert type(build_optimizer(config, model)).__name__ == "AdamW"
    for name in [name for name in sys.modules if name.split(".")[0] == "apex"]:
        del sys.modules[name]  # monkeypatch would bring it back
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(UserError, match="NVIDIA apex is not installed"):
        build_optimizer(config, model)
