"""The direction that an optimizer takes for a gradient, without rate and without memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from largebatch.optim import LAMB, layer_rates
from largebatch.optim.parameters import local

Gradient: TypeAlias = Sequence[Tensor]
Direction: TypeAlias = Callable[[Gradient], list[Tensor]]

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024


def along(gradient: Gradient) -> list[Tensor]:
    """Return the direction of SGD: the gradient at length 1."""
    length = torch.stack([g.double().square().sum() for g in gradient]).sum().sqrt()
    return [g / length.to(g.dtype) for g in gradient]


def signs(gradient: Gradient) -> list[Tensor]:
    """Return the direction of sign descent, which is Adam without memory."""
    return [g.sign() for g in gradient]


def orthogonal(matrix: Tensor) -> Tensor:
    """Return U V' of the matrix U S V', approximated by five Newton-Schulz steps."""
    a, b, c = NEWTON_SCHULZ
    x = matrix / (matrix.norm() + 1e-12)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if tall else x


def direction_of(optimizer: torch.optim.Optimizer, params: Sequence[Tensor]) -> Direction:
    """Return an optimizer's direction, ignoring its memory (momentum and second moment).

    SGD: the gradient at length 1. LARS and LAMB: by layer, the gradient (LARS) or its sign (LAMB)
    at the length of the layer's weights, and zero for layers that do not adapt. Muon: the
    orthogonalised gradient for its matrices. Adam and others that divide by the root of a second
    moment: the sign.

    Args:
        params: parameters in the order in which gradients will be given.
    """
    layerwise = layer_rates(optimizer)
    groups = optimizer.param_groups
    if layerwise is not None:
        still = {id(param) for param in layerwise.excluded()}
        by_sign = isinstance(getattr(optimizer, "optimizer", optimizer), LAMB)

        def by_layer(gradient: Gradient) -> list[Tensor]:
            found = []
            for param, g in zip(params, gradient, strict=True):
                d = g.sign() if by_sign else g
                length = local(param.detach()).norm() / (d.norm() + 1e-30)
                found.append(torch.zeros_like(g) if id(param) in still else d * length)
            return found

        return by_layer
    matrices = {id(param) for group in groups if group.get("muon") for param in group["params"]}
    if matrices:

        def by_matrix(gradient: Gradient) -> list[Tensor]:
            return [
                # Muon's update has the root mean square of Adam's (Liu et al. 2025).
                orthogonal(g) * max(g.shape) ** 0.5 if id(param) in matrices else g.sign()
                for param, g in zip(params, gradient, strict=True)
            ]

        return by_matrix
    if any(key in group for group in groups for key in ("betas", "alpha", "rho")):
        return signs
    return along
