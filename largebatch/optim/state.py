"""Loading optimizer state without changing a bit of it."""

from __future__ import annotations

from typing import Any

import torch


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
            if not isinstance(value, torch.Tensor) or key == "step":
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
