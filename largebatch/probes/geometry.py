"""How long an optimizer's steps are in each direction, and the curvature at which they diverge.

Take coordinates in which the optimizer is plain or heavy-ball gradient descent. On a quadratic of
curvature h, steps of rate r are then stable while r h stays below a bound:

| optimizer | bound | source |
|---|---|---|
| gradient descent | 2 | |
| momentum m | 2 (1 + m) | Cohen et al. 2021, appendix B |
| Nesterov's momentum | 2 (1 + m) / (1 + 2 m) | the same |
| Adam | 2 (1 + b1) / (1 - b1): 38 at b1 = 0.9 | Cohen et al. 2022, section 2 |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from largebatch.optim import LAMB, LARS, SGD, layer_rates
from largebatch.optim.parameters import local
from largebatch.probes.parameter_space import ParameterSpace


@dataclass(frozen=True)
class Geometry:
    """The coordinates in which an optimizer is plain or heavy-ball gradient descent.

    Attributes:
        root: root of the inverse of the preconditioner's diagonal, as a vector; None: the identity.
        rate: learning rate of the first group; rates of other groups enter ``root``.
        bound: value of rate x curvature above which steps diverge, in these coordinates.
    """

    root: Tensor | None
    rate: float
    bound: float


def geometry(optimizer: torch.optim.Optimizer, space: ParameterSpace) -> Geometry | None:
    """Return the coordinates of an optimizer in its present state; None without a formula.

    For LARS and LAMB the trust ratios of the last step are taken as constant.
    """
    kind = getattr(optimizer, "optimizer", optimizer)
    group = optimizer.param_groups[0]
    rate = float(group["lr"])
    bound = _bound(kind, group)
    if bound is None or rate <= 0:
        return None
    groups = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    ratios = _ratios(optimizer)
    scales: list[Tensor] = []
    for param in space.params.values():
        state, own = optimizer.state.get(param, {}), groups.get(id(param))
        scale = torch.ones_like(local(param.detach()))
        if own is None:  # the optimizer leaves it as it is
            scales.append(torch.zeros_like(scale))
            continue
        scale *= float(own["lr"]) / rate * ratios.get(id(param), 1.0)
        divisor = _divisor(kind, own, state)
        scales.append(scale if divisor is None else scale / divisor.to(scale))
    flat = space.flat(scales)
    plain = bool((flat == 1).all()) and not isinstance(kind, (LAMB, LARS))
    return Geometry(None if plain and not _adapts(kind) else flat.sqrt(), rate, bound)


def _adapts(kind: Any) -> bool:
    return isinstance(kind, (torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, LAMB))


def _bound(kind: Any, group: Mapping[str, Any]) -> float | None:
    if isinstance(kind, (torch.optim.Adam, torch.optim.AdamW, LAMB)):
        first = float(group["betas"][0])
        return 2 * (1 + first) / (1 - first)
    if isinstance(kind, torch.optim.RMSprop):
        return None if group["centered"] else 2 * (1 + float(group["momentum"]))
    if isinstance(kind, (SGD, LARS, torch.optim.SGD)):
        momentum = float(group["momentum"])
        bound = 2 * (1 + momentum) / (1 - float(group.get("dampening", 0.0)))
        return bound / (1 + 2 * momentum) if group.get("nesterov") else bound
    return None


def _divisor(kind: Any, group: Mapping[str, Any], state: Mapping[str, Any]) -> Tensor | None:
    """Return what the update is divided by, element by element."""
    if "square_avg" in state:
        found: Tensor = local(state["square_avg"]).sqrt() + group["eps"]
        return found
    if "exp_avg_sq" not in state or not _adapts(kind):
        return None
    second = state.get("max_exp_avg_sq", state["exp_avg_sq"])
    corrects = group.get("bias_correction", True) != "none"
    count = float(state["step"])
    first_left, second_left = (1 - float(b) ** count for b in group["betas"])
    if not corrects:
        first_left = second_left = 1.0
    divided: Tensor = (local(second).double() / second_left).sqrt() + group["eps"]
    return divided * first_left


def _ratios(optimizer: torch.optim.Optimizer) -> dict[int, float]:
    """Return the trust ratio of every tensor, of pieces the mean."""
    layerwise, found = layer_rates(optimizer), dict[int, list[float]]()
    if layerwise is not None:
        for param, _, row in layerwise.layer_norms():
            found.setdefault(id(param), []).append(float(row[2]))
    return {param: sum(pieces) / len(pieces) for param, pieces in found.items()}
