"""Optimizer state: how it begins, and loading it without changing a bit of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from largebatch import _ops
from largebatch._errors import UserError
from largebatch.optim.parameters import SIXTEEN_BIT


def begin_state(
    param: Tensor, state: dict[str, Any], moments: Iterable[str], group: dict[str, Any]
) -> None:
    """Add what a parameter's state lacks: moments of zeros, and the master of a 16-bit parameter.

    Args:
        param: whose ``state`` it is.
        moments: their names.
        group: ``master_weights`` says whether there are masters, ``state_dtype`` (None or absent:
            float32) the type of the moments of parameters that are not float64.
    """
    for name in moments:
        if name not in state:
            state[name] = torch.zeros_like(param, dtype=moment_dtype(param, group))
    if param.dtype in SIXTEEN_BIT and group["master_weights"] and "master" not in state:
        state["master"] = param.detach().to(torch.float32, copy=True)


def moment_dtype(param: Tensor, group: dict[str, Any]) -> torch.dtype:
    """Return the type of a parameter's moments."""
    dtype = _ops.accumulate_dtype(param.dtype)
    if dtype == torch.float32 and group.get("state_dtype") is not None:
        dtype = group["state_dtype"]
    return dtype


def check_state_dtype(name: str, group: dict[str, Any]) -> None:
    """Refuse moments of a type that the kernels do not know.

    Raises:
        UserError: naming the optimizer ``name`` and the type.
    """
    if group["state_dtype"] not in (None, torch.float32, torch.bfloat16):
        raise UserError(f"{name}: state_dtype={group['state_dtype']}: None, float32 or bfloat16")


def restore_exactly(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    """Undo what ``load_state_dict`` did to the tensors of ``state_dict``.

    torch casts loaded state to its parameter's type, which rounds float32 moments of 16-bit
    parameters and widens NAdam's float32 product beside float64 ones. This puts the saved types
    back, and gives each tensor of its parameter's shape that parameter's memory order, which fused
    kernels need and files lose. ``step`` stays as torch placed it.
    """
    numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for number, param in zip(numbers, params, strict=True):
        for key, value in state_dict["state"].get(number, {}).items():
            if not isinstance(value, Tensor) or key == "step":
                continue
            if value.shape == param.shape:
                target = torch.empty_like(param, dtype=value.dtype, requires_grad=False)
                target.copy_(value)
            else:
                target = value.to(param.device, copy=True)
            optimizer.state[param][key] = target


def load_exactly(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Make ``optimizer.load_state_dict`` bit-exact, by hooks; return the optimizer."""
    loading: list[dict[str, Any]] = []

    def before(_: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
        loading.append(state_dict)

    def after(loaded: torch.optim.Optimizer) -> None:
        restore_exactly(loaded, loading.pop())

    optimizer.register_load_state_dict_pre_hook(before)
    optimizer.register_load_state_dict_post_hook(after)
    return optimizer
