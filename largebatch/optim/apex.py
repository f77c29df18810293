"""NVIDIA apex: run its FusedLAMB, and convert its LAMB states to ours and back."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from largebatch._errors import UserError
from largebatch.optim.config import OptimConfig
from largebatch.optim.construct import construct
from largebatch.optim.exact import exact
from largebatch.optim.registry import OptimizerFacts, optimizers

INSTALL = "build it from https://github.com/NVIDIA/apex, or choose optim.name=lamb"


def from_apex(state_dict: dict[str, Any], use_nvlamb: bool = False) -> dict[str, Any]:
    """Return the state of apex's FusedLAMB or FusedMixedPrecisionLamb as one of our LAMB.

    Load the result into ``LAMB(..., preset="nvlamb")`` over the same groups and parameters to go on
    with the run. Moments become float32. apex saves no float32 master copies of 16-bit parameters,
    so our copies begin at the 16-bit values.

    Args:
        state_dict: the apex optimizer's ``state_dict()``, which counts steps per group.
        use_nvlamb: the value that apex was given (apex does not save it). False: groups without
            weight decay have no trust ratio.
    """
    state, groups = {}, []
    for group in state_dict["param_groups"]:
        step = torch.tensor(float(group.get("step", 0)), dtype=torch.float32)
        for number in group["params"]:
            if number in state_dict["state"]:
                moments = state_dict["state"][number]
                state[number] = {
                    "exp_avg": moments["exp_avg"].float(),
                    "exp_avg_sq": moments["exp_avg_sq"].float(),
                    "step": step.clone(),
                }
        groups.append(
            {
                "params": list(group["params"]),
                "lr": float(group["lr"]),
                "betas": tuple(group["betas"]),
                "eps": group["eps"],
                "weight_decay": group["weight_decay"],
                "bias_correction": "moments" if group["bias_correction"] else "none",
                "grad_averaging": bool(group["grad_averaging"]),
                "exclude": "none" if use_nvlamb else "no_decay",
            }
        )
    return {"state": state, "param_groups": groups}


def to_apex(
    state_dict: dict[str, Any], mixed_precision: bool = False, max_grad_norm: float = 1.0
) -> dict[str, Any]:
    """Return the state of our LAMB as one of apex's FusedLAMB or FusedMixedPrecisionLamb.

    Args:
        state_dict: that of a :class:`largebatch.optim.LAMB`. Float32 master copies are left out,
            since apex has no place for them.
        mixed_precision: write the form of FusedMixedPrecisionLamb, whose rate and step are tensors.
        max_grad_norm: clipping norm to write into apex's groups.

    Raises:
        UserError: apex has no such form: ``bias_correction="rate"``, or step counts that differ
            within a group.
    """
    state, groups = {}, []
    for group in state_dict["param_groups"]:
        if group["bias_correction"] == "rate":
            raise UserError("to_apex: bias_correction='rate': apex has moments and none")
        held = [state_dict["state"][n] for n in group["params"] if n in state_dict["state"]]
        steps = {int(each["step"]) for each in held} or {0}
        if len(steps) > 1:
            raise UserError(f"to_apex: steps {sorted(steps)} in one group: apex counts by group")
        lr: float | Tensor = float(group["lr"])
        step: int | Tensor = steps.pop()
        if mixed_precision:
            lr = torch.tensor(lr, dtype=torch.float32)
            step = torch.tensor([step], dtype=torch.int32)
        for number in group["params"]:
            if number in state_dict["state"]:
                moments = state_dict["state"][number]
                state[number] = {key: moments[key].clone() for key in ("exp_avg", "exp_avg_sq")}
        groups.append(
            {
                "params": list(group["params"]),
                "lr": lr,
                "step": step,
                "betas": tuple(group["betas"]),
                "eps": group["eps"],
                "weight_decay": group["weight_decay"],
                "bias_correction": group["bias_correction"] == "moments",
                "grad_averaging": group["grad_averaging"],
                "max_grad_norm": max_grad_norm,
            }
        )
    return {"state": state, "param_groups": groups}


def fused_lamb() -> type[torch.optim.Optimizer]:
    """Return apex's FusedLAMB.

    Raises:
        UserError: apex is absent, was built without FusedLAMB, or is an unrelated package of the
            same name.
    """
    found = importlib.util.find_spec("apex")
    if found is None:
        raise UserError(f"optim.name=apex_lamb: NVIDIA apex is not installed; {INSTALL}")
    folders = found.submodule_search_locations or []
    # Looked for and not imported: the other package of this name is a web framework's toolkit.
    if not any((Path(folder) / "multi_tensor_apply").is_dir() for folder in folders):
        raise UserError(
            f"optim.name=apex_lamb: the installed package apex is not NVIDIA's; {INSTALL}"
        )
    try:
        kind: type[torch.optim.Optimizer] = importlib.import_module("apex.optimizers").FusedLAMB
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"optim.name=apex_lamb: apex has no FusedLAMB ({error}); {INSTALL}"
        ) from None
    return kind


@optimizers.register(
    "apex_lamb",
    "LAMB by NVIDIA apex (FusedLAMB), on a GPU where apex is installed",
    "You et al. 2020; NVIDIA apex",
    OptimizerFacts(
        frozenset({"betas", "eps", "momentum_half_life", "beta2_half_life"}), scale_free=True
    ),
)
def build_apex_lamb(config: OptimConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Build apex's FusedLAMB from the config; its clipping is ``optim.options.max_grad_norm``."""
    arguments: dict[str, Any] = {"lr": config.lr, "betas": tuple(config.betas)}
    if config.eps is not None:
        arguments["eps"] = config.eps
    built: torch.optim.Optimizer = construct(exact(fused_lamb()), config, groups, arguments)
    return built
