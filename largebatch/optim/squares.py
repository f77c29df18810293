"""Squared norms of a step's gradients, before and after ranks add theirs up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from largebatch import _ops
from largebatch.distributed.sharding import is_sharded

Apart: TypeAlias = Literal["ranks", "first", "passes"]
Gradients: TypeAlias = Iterable[tuple[Tensor, Tensor | None]]


class Squares:
    """Squared norms of a step's gradients, one per tensor of the optimizer's parameters.

    Estimates of the gradient noise scale are made of these norms (McCandlish et al. 2018, "An
    empirical model of large-batch training", appendix A). The gradients are those of the loss
    divided by the weight of the whole step, before clipping. Under fp16 the loss scale is taken
    out.

    Attributes:
        wanted: whether to measure the coming exchange of gradients between ranks; otherwise nothing
            is computed. Reset to False after one exchange, so that of the two exchanges of a SAM
            step the first is measured.
        apart: which parts of the step are measured separately: each rank's sum (``ranks``), each
            rank's first pass (``first``, one more norm), or every pass (``passes``, which keeps a
            second copy of the gradients).
        passes: number of this rank's passes in the measured step, without idle ones.
        own: (tensors,) float64, squared norms of this rank's part of the sum. Known once its passes
            are over; zero if ranks sum gradients within the passes.
        share: share of the step's weight in this rank's passes: 0-d, float64; known with ``own``.
        parts: (tensors,) float64, sum of the squared norms of the parts measured apart; known with
            ``summed``.
        shares: (3,) float64, about the parts measured apart: the sum of their shares of the step's
            weight, the sum of the squares of these shares, and the number of parts.
        summed: (tensors,) float64, squared norms of the sum over all ranks; known after the
            exchange.
        groups: the tensors of each parameter group, in the optimizer's order.
        params: the tensors of all groups.
        copies: None: ``summed`` is of whole gradients. Otherwise each rank holds parts of the
            gradients, the same parts as this many ranks, and ``summed`` is a share: sum over ranks.

    Args:
        groups: the tensors of each of ``optimizer.param_groups``.
        gradients: returns the parameters with this rank's gradients after a pass; None: read
            ``grad``.
        copies: see Attributes.
    """

    def __init__(
        self,
        groups: Iterable[Iterable[Tensor]],
        gradients: Callable[[], Gradients] | None = None,
        copies: int | None = None,
    ) -> None:
        self.groups = [[param for param in group if param.requires_grad] for group in groups]
        self.params = [param for group in self.groups for param in group]
        self._place = {id(param): place for place, param in enumerate(self.params)}
        self._gradients, self.copies = gradients or self.grads, copies
        self.wanted = False
        self.apart: Apart = "ranks"
        self.passes = 0
        self.own = self.parts = self.summed = torch.zeros(len(self.params), dtype=torch.float64)
        self.shares = torch.zeros(3, dtype=torch.float64)
        self._before: dict[int, Tensor] = {}  # the second copy of the gradients, kept as memory
        self.share = self.shares[0]
        self.begin()

    def begin(self) -> None:
        """Forget the gradients of earlier passes."""
        self._own: dict[int, Tensor] = {}
        self._apart: list[dict[int, Tensor]] = []
        self._first: dict[int, Tensor] = {}
        self._kept: set[int] = set()
        self._shares: list[Tensor] = []

    def found(self, param: Tensor, grad: Tensor) -> None:
        """Record what the present pass adds to a gradient, under an engine that takes it at once.

        Only a step's first pass is recorded.
        """
        if self.wanted and not self._shares:
            self._first |= self._of([(param, grad)])

    def passed(self, weight: Tensor, step_weight: float, last: bool) -> None:
        """Record that a pass is over and its gradients are in this rank's sum.

        Args:
            weight: weight of the pass, 0-d.
            step_weight: weight of the whole step, over all ranks.
            last: whether this is the step's last pass, whose gradients may have been sent already.
        """
        if not self.wanted:
            return
        self._shares.append(weight.double() / step_weight)
        if not last and self.apart == "first" and len(self._shares) == 1:
            self._apart = [self._first or self._of(self._gradients())]
        elif not last and self.apart == "passes":
            self._apart.append(self._added(self.params))
            for param in self.params:
                if param.grad is not None:
                    self._keep(param)

    def add(self, params: Iterable[Tensor]) -> None:
        """Record complete gradients of this rank, before they are summed with other ranks'."""
        if not self.wanted:
            return
        params = list(params)
        self._own |= self._of((param, param.grad) for param in params)
        if self.apart == "passes" and self._apart:
            self._apart.append(self._added(params))

    def finish(self, sums: Gradients | None, scale: Tensor | None = None) -> None:
        """Record the gradients summed over all ranks.

        Args:
            sums: parameters with their sums; None: there is only this rank.
            scale: the loss scale under fp16, 0-d.
        """
        if not self.wanted:
            return
        self.wanted, self.passes = False, len(self._shares)
        self.own = self._row([self._own])
        self.summed = self.own
        if sums is not None:
            self.summed = self._row([self._of(sums)])
        if self.copies is not None:
            self.summed = self.summed / self.copies
        self.parts = self._row(self._apart) if self._apart else self.own
        self.shares = self._shares_of_parts(self.own.device)
        self.share = sum(self._shares, self.own.new_zeros(()))
        if scale is not None:
            square = scale.double().square()
            self.own, self.summed = self.own / square, self.summed / square
            self.parts = self.parts / square

    def _shares_of_parts(self, device: torch.device) -> Tensor:
        if not self._shares or not (self._apart or self._own):
            return torch.zeros(3, dtype=torch.float64, device=device)
        shares = torch.stack(self._shares).to(device)
        if self.apart == "ranks":
            shares = shares.sum(0, keepdim=True)
        elif self.apart == "first":
            shares = shares[:1]
        count = torch.full_like(shares[0], len(shares))
        return torch.stack((shares.sum(), shares.square().sum(), count))

    def grads(self) -> Gradients:
        """Return the tensors, each with its ``grad``."""
        return ((param, param.grad) for param in self.params)

    def _of(self, gradients: Gradients) -> dict[int, Tensor]:
        return {
            self._place[id(param)]: _squared(grad)
            for param, grad in gradients
            if grad is not None and id(param) in self._place
        }

    def _added(self, params: Iterable[Tensor]) -> dict[int, Tensor]:
        """Return the squares of what has been added to gradients since they were kept."""
        found = {}
        for param in params:
            place = self._place.get(id(param))
            if place is None or param.grad is None:
                continue
            before = self._before.get(place)
            if before is None or place not in self._kept:
                found[place] = _squared(param.grad)
            else:  # into memory that is there: a pass that allocates takes three times as long
                with torch.no_grad():
                    torch.sub(param.grad, before, out=before)
                found[place] = _squared(before)
        return found

    def _keep(self, param: Tensor) -> None:
        place, grad = self._place[id(param)], param.grad
        assert grad is not None
        self._kept.add(place)
        with torch.no_grad():
            if place in self._before:
                self._before[place].copy_(grad)
            else:
                self._before[place] = grad.detach().clone()

    def _row(self, found: Sequence[Mapping[int, Tensor]]) -> Tensor:
        """Return the sums by tensor, zero of those without a gradient."""
        device = self.params[0].device if self.params else torch.device("cpu")
        zero = torch.zeros((), dtype=torch.float64, device=device)
        row = [zero] * len(self.params)
        for each in found:
            for place, square in each.items():
                row[place] = row[place] + square.to(device)
        return torch.stack(row) if row else zero.new_zeros(0)


def _squared(grad: Tensor) -> Tensor:
    held = grad.to_local() if is_sharded(grad) else grad
    return _ops.global_norm([held.detach()]).double().square()
