"""Squared norms of a step's gradients, before and after ranks add theirs up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from largebatch import _ops


class Squares:
    """Squared norms of a step's gradients, one of each group of the optimizer's parameters.

    The gradients are those that the step is taken along: of the loss divided by the weight of the
    whole step, before they are clipped; under fp16 without the loss scale. What noise scales are
    made of (McCandlish et al. 2018, "An empirical model of large-batch training", appendix A).

    Attributes:
        wanted: whether the coming step is to be measured; a step that is not costs nothing.
        own: (groups,) float64, of this rank's part of the sum; known once its passes are over.
        summed: (groups,) float64, of the sum over all ranks; known once it has been exchanged.

    Args:
        groups: ``optimizer.param_groups``.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]]) -> None:
        self.wanted = False
        self.own = self.summed = torch.zeros(len(groups), dtype=torch.float64)
        self._count = len(groups)
        self._group = {id(param): i for i, group in enumerate(groups) for param in group["params"]}
        self._parts: list[Tensor] = []

    def begin(self) -> None:
        """Forget the gradients of the pass before."""
        self._parts = []

    def add(self, params: Iterable[Tensor]) -> None:
        """Take in gradients of this rank that are complete, before they are added to others'."""
        if self.wanted:
            self._parts.append(self._of(params))

    def finish(self, params: Iterable[Tensor], scale: Tensor | None = None) -> None:
        """Take in the sums over all ranks.

        Args:
            scale: of the loss under fp16, 0-d.
        """
        if not self.wanted:
            return
        self.summed = self._of(params)
        self.own = torch.stack(self._parts).sum(0) if self._parts else self.summed
        if scale is not None:
            square = scale.double().square()
            self.own, self.summed = self.own / square, self.summed / square

    def _of(self, params: Iterable[Tensor]) -> Tensor:
        grads: list[list[Tensor]] = [[] for _ in range(self._count)]
        for param in params:
            if param.grad is not None and id(param) in self._group:
                grads[self._group[id(param)]].append(param.grad)
        norms = [_ops.global_norm(each).double() if each else None for each in grads]
        device = next((norm.device for norm in norms if norm is not None), None)
        zero = torch.zeros((), dtype=torch.float64, device=device)
        return torch.stack([zero if norm is None else norm.square() for norm in norms])
