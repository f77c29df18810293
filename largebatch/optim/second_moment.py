"""Adjust Adam's second moment when the batch size changes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

NAMES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg")
"""Of averages of squared gradients in the states of torch's optimizers and ours."""

OTHERS = "*"


def has_second_moment(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimizer's state holds averages of squared gradients (after a step)."""
    return any(name in state for state in optimizer.state.values() for name in NAMES)


@torch.no_grad()
def scale_second_moment(
    optimizer: torch.optim.Optimizer, model: nn.Module, factors: Mapping[str, float]
) -> None:
    """Multiply the averages of squared gradients by factors; leave the first moment alone.

    With G the true gradient's norm, T the trace of the noise covariance and B the batch, the mean
    square of a step's gradient is G^2 + T / B. When the batch grows to B', an average over many
    steps is too large for a while, and the steps are too short. With the factor (G^2 + T / B') /
    (G^2 + T / B) they have the right length at once.

    Args:
        optimizer: its state is held per parameter of ``model``. Under an engine that flattens
            parameters, the factor of ``*`` counts for all.
        factors: factor by parameter name; ``*`` is for parameters that are not named.
    """
    names = {id(param): name for name, param in model.named_parameters()}
    others = factors.get(OTHERS, 1.0)
    for param, state in optimizer.state.items():
        factor = factors.get(names.get(id(param), OTHERS), others)
        for name in NAMES:
            if isinstance(state.get(name), Tensor):
                state[name].mul_(factor)
