"""The second moment at a change of the batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

NAMES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg")
"""Of averages of squared gradients in the states of torch's optimizers and ours."""

OTHERS = "*"


def has_second_moment(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the state of an optimizer, which has stepped, holds averages of squared gradients."""
    return any(name in state for state in optimizer.state.values() for name in NAMES)


@torch.no_grad()
def scale_second_moment(
    optimizer: torch.optim.Optimizer, model: nn.Module, factors: Mapping[str, float]
) -> None:
    """Multiply averages of squared gradients; the first moment stays.

    The mean square of a step's gradient is G^2 + T / B. When the batch grows to B' an average that
    remembers longer than a few steps is too large, and the steps are too short until it has
    forgotten; with factors (G^2 + T / B') / (G^2 + T / B) they have their length at once.

    Args:
        optimizer: whose state is by parameter of ``model`` (or flat, under an engine that
            flattens: then the factor of ``*`` counts for all).
        factors: by name of the parameter; that of ``*`` for those without a name here.
    """
    names = {id(param): name for name, param in model.named_parameters()}
    others = factors.get(OTHERS, 1.0)
    for param, state in optimizer.state.items():
        factor = factors.get(names.get(id(param), OTHERS), others)
        for name in NAMES:
            if isinstance(state.get(name), Tensor):
                state[name].mul_(factor)
