"""Arguments of the optimizers that ours take the place of: accepted, mapped, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from largebatch._errors import UserError
from largebatch.optim import LAMB, LARS, SGD, SGDW, OptimConfig, RMSpropWarmup, build_optimizer
from largebatch.optim.foreign import TORCH, translate


def params() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))]


@pytest.mark.parametrize("kind", [SGD, SGDW, LARS, LAMB, RMSpropWarmup])
def test_what_torchs_optimizers_have_in_common(kind: Any) -> None:
    for foreach in (None, True, False):
        kind(params(), foreach=foreach, differentiable=False, capturable=False)
    kind(params())  # with a rate by default
    with pytest.raises(UserError, match=r"differentiable=True: .*torch\.optim\.SGD can"):
        kind(params(), differentiable=True)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'forech' .*'foreach'"):
        kind(params(), forech=True)


MEANT: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
    (LARS, {"dampening": 0}, {}),
    (LARS, {"trust_coeff": 0.02}, {"trust_coefficient": 0.02}),
    (LARS, {"trust_clip": True}, {"clip_ratio": True}),
    (LARS, {"always_adapt": True, "preset": "timm"}, {"exclude": "none"}),
    (LARS, {"capturable": True}, {}),
    (LAMB, {"use_nvlamb": False}, {"exclude": "no_decay"}),
    (LAMB, {"use_nvlamb": True, "preset": "author"}, {"exclude": "none"}),
    (LAMB, {"adam_w_mode": True, "set_grad_none": True, "amsgrad": False}, {}),
    (LAMB, {"max_coeff": 10.0, "min_coeff": 0.01}, {"max_ratio": 10.0, "min_ratio": 0.01}),
    (LAMB, {"always_adapt": False, "trust_clip": True}, {"exclude": "no_decay", "max_ratio": 1.0}),
    (LAMB, {"bias_correction": True}, {"bias_correction": "moments"}),
    (LAMB, {"bias_correction": False}, {"bias_correction": "none"}),
    (LAMB, {"bias_correction": 1}, {"bias_correction": "moments"}),
    (LAMB, {"bias_correction": True, "preset": "author"}, {"bias_correction": "moments"}),
    (LAMB, {"bias_correction": True, "preset": "deepspeed"}, {"bias_correction": "rate"}),
    (LAMB, {"bias_correction": "rate"}, {"bias_correction": "rate"}),
    (RMSpropWarmup, {"centered": False}, {}),
]


@pytest.mark.parametrize(("kind", "given", "meant"), MEANT)
def test_what_they_come_to(kind: Any, given: dict[str, Any], meant: dict[str, Any]) -> None:
    group = kind(params(), **given).param_groups[0]
    assert {key: group[key] for key in meant} == meant
    assert set(group) == set(kind(params()).param_groups[0])  # none stays under its own name


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (SGD, {"capturable": True}, "capturable=True: .*LARS and LAMB"),
    (LARS, {"dampening": 0.9}, r"dampening=0\.9: .*lr x \(1 - dampening\)"),
    (LAMB, {"adam_w_mode": False}, "adam_w_mode=False: "),
    (LAMB, {"set_grad_none": False}, "set_grad_none=False: .*set_to_none=False"),
    (LAMB, {"amsgrad": True}, "amsgrad=True: "),
    (LAMB, {"use_nvlamb": False, "exclude": "none"}, "exclude='none': .*'no_decay'"),
    (LAMB, {"use_nvlamb": False, "always_adapt": True}, "another argument sets exclude"),
    (LAMB, {"bias_correction": "yes"}, "bias_correction='yes': moments, rate, none, or True"),
    (LAMB, {"betas": 0.9}, r"betas=0\.9: two"),
    (RMSpropWarmup, {"centered": True}, r"centered=True: .*torch\.optim\.RMSprop"),
]


@pytest.mark.parametrize(("kind", "given", "said"), REFUSED)
def test_what_has_no_form_here(kind: Any, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        kind(params(), **given)
    assert "\n" not in str(caught.value)


def test_the_config_takes_them_too() -> None:
    model = nn.Linear(2, 2)
    built = build_optimizer(OptimConfig(name="lamb", options={"use_nvlamb": False}), model)
    assert built.param_groups[0]["exclude"] == "no_decay"
    with pytest.raises(UserError, match="amsgrad=True"):
        build_optimizer(OptimConfig(name="lamb", options={"amsgrad": True}), model)


def test_odd_values_are_compared_and_not_trusted() -> None:
    assert translate("x", TORCH, {"foreach": torch.tensor(True)}) == {}
    with pytest.raises(UserError, match="differentiable=None"):
        translate("x", TORCH, {"differentiable": None})


def test_a_correction_edited_in_place() -> None:
    paths = []
    for correction in (True, "moments"):
        weights = params()
        optimizer = LAMB(weights, lr=0.1)
        optimizer.param_groups[0]["bias_correction"] = correction
        for step in range(2):
            for param in weights:
                param.grad = torch.full_like(param, 1.0 + step)
            optimizer.step()
        paths.append(torch.cat([param.detach().flatten() for param in weights]))
    assert torch.equal(*paths)
