"""Filter-normalised random directions: each filter has the norm of the network's filter.

Li, Xu, Taylor, Studer and Goldstein 2018, "Visualizing the loss landscape of neural nets"
(arXiv:1712.09913), section 4: ``d_ij <- d_ij |w_ij| / |d_ij|``, filter j of layer i by filter. A
ReLU network with one layer multiplied by c and the next divided by c computes the same function.
Along such directions its picture is the same too; along plain Gaussian directions it is not.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from largebatch.weight_space.weights import Weights

OneDimensional: TypeAlias = Literal["zero", "weights"]
"""What a direction has for biases and the parameters of norms."""


def filter_normalized_direction(
    model: nn.Module, generator: torch.Generator, one_dimensional: OneDimensional = "zero"
) -> dict[str, Tensor]:
    """Return a Gaussian direction over the trained parameters, normalised filter by filter.

    Args:
        generator: generator on the CPU; the draws depend only on it, not on device or type.
        one_dimensional: direction of biases and of the parameters of norms. ``zero``: they do not
            move, as in the figures of the paper. ``weights``: the weights themselves, the authors'
            other choice.
    """
    own = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    drawn = {
        name: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.device, p.dtype)
        for name, p in own.items()
    }
    return normalize_filters(drawn, own, one_dimensional)


@torch.no_grad()
def normalize_filters(
    direction: Weights, weights: Weights, one_dimensional: OneDimensional = "zero"
) -> dict[str, Tensor]:
    """Return a direction whose filters have the lengths of those of ``weights``.

    A filter is a slice along the first dimension: the weights of one output channel or unit. A
    filter of length 0 remains 0.
    """
    found = {}
    for name, along in direction.items():
        own = weights[name]
        if along.ndim < 2:
            found[name] = own.clone() if one_dimensional == "weights" else torch.zeros_like(along)
            continue
        inside = tuple(range(1, along.ndim))
        length = vector_norm(along, dim=inside, keepdim=True)
        ratio = vector_norm(own, dim=inside, keepdim=True) / length
        found[name] = along * torch.where(length > 0, ratio, torch.zeros_like(ratio))
    return found
