"""Estimate |G|^2 and T, the two terms of a noise scale, from measured parts of a step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def noise_terms(whole: Any, parts: Any, share: Any, squares: Any, batch: Any) -> tuple[Any, Any]:
    """Estimate |G|^2 and T of one step, both without bias; either may come out below zero.

    A step's gradient is a sum over groups of samples. Group i has the share w_i of the step's
    weight and contributes c_i, with the mean w_i G. For some of the groups the c_i are known::

        E |sum c|^2        = |G|^2 + V                V: the variance of the whole sum
        E sum_known |c_i|^2 = |G|^2 sum w_i^2 + V sum w_i

    If all groups are known, the second line holds for any covariance of any group. So ghosts of
    unequal size or noise do no harm (McCandlish et al. 2018, appendix A.1, supposes a covariance of
    S / samples). If only some are known, the line supposes the same noise per sample in all groups.

    Args:
        whole: squared length of the step's gradient.
        parts: sum of the squared lengths of the known c_i.
        share: sum of the shares of the known groups; 1 if all groups are known.
        squares: sum of the squares of these shares, below ``share``.
        batch: samples in the step.

    Returns:
        |G|^2, and T: the trace of the covariance of one sample's gradient. Numbers, arrays or
        tensors, as the arguments are. The noise scale is T / |G|^2; average both over steps before
        dividing, see :func:`~largebatch.probes.noise_estimate.estimate_noise`.
    """
    signal = (share * whole - parts) / (share - squares)
    return signal, batch * (whole - signal)


def noise_terms_of(gradients: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Estimate |G|^2 and T from the gradients of all groups of a step, such as its ghosts.

    Args:
        gradients: (groups, n), at least two groups: each group's part of the gradient of a loss
            that is the mean over the step's samples; columns are parameters. A norm calls its
            ``gradient_observer`` with such a tensor.
        sizes: samples in each group.

    Returns:
        |G|^2 and T as scalars, see :func:`noise_terms`.
    """
    if len(sizes) != gradients.shape[0] or len(sizes) < 2:
        raise ValueError(f"{len(sizes)} sizes for {gradients.shape[0]} groups: at least 2 of each")
    batch = sum(sizes)
    squares = sum((size / batch) ** 2 for size in sizes)
    whole, parts = gradients.sum(0).square().sum(), gradients.square().sum()
    signal, trace = noise_terms(whole, parts, 1.0, squares, batch)
    return torch.as_tensor(signal), torch.as_tensor(trace)
