"""Get a model's weights and running statistics by name, and move weights along directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

Weights: TypeAlias = Mapping[str, Tensor]
"""Tensors by their names in ``state_dict``."""

Loss: TypeAlias = Callable[[Weights], float]
"""The loss of a network with these weights."""


def norm_statistics(model: nn.Module) -> list[str]:
    """Return the names of the running means and variances of a model's norms."""
    return [
        f"{name}.{buffer}" if name else buffer
        for name, module in model.named_modules()
        if isinstance(module, _NormBase)
        for buffer in ("running_mean", "running_var")
        if getattr(module, buffer) is not None
    ]


def weights_of(model: nn.Module, statistics: bool = False) -> dict[str, Tensor]:
    """Return copies of a model's movable tensors: parameters, and floating-point buffers.

    Buffers are included since a network may have weights that are not trained, such as a fixed
    classifier.

    Args:
        statistics: whether to include the running statistics of norms.
    """
    left_out = set() if statistics else set(norm_statistics(model))
    persistent = model.state_dict().keys()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        name: tensor.detach().clone()
        for name, tensor in tensors.items()
        if name in persistent and name not in left_out and tensor.is_floating_point()
    }


@torch.no_grad()
def moved(weights: Weights, *steps: tuple[Weights, float]) -> dict[str, Tensor]:
    """Return weights plus multiples of directions; tensors that a direction does not name stay.

    Args:
        steps: pairs of a direction and its multiple.
    """
    found = dict(weights)
    for direction, multiple in steps:
        for name, along in direction.items():
            found[name] = torch.add(found[name], along, alpha=multiple)
    return found
