"""Products with the Hessian of a step's loss, from gradients of the run's own engine.

The product is the difference of two gradients, at weights moved along a vector and against the
vector. So everything with a gradient works: ghost batches, sharded parameters, kernels without a
second derivative. The usual double backward pass (Pearlmutter 1994) needs second derivatives of all
of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch.probes.parameter_space import ParameterSpace
from largebatch.probes.replay import Replay

Product = Callable[[Tensor], Tensor]


def reach(weights: float, dtype: torch.dtype) -> float:
    """Return the step of a central difference at which its two errors are about equal.

    The error from the third derivative grows with the square of the step. The error from rounding
    grows with the inverse of the step.
    """
    return float(torch.finfo(dtype).eps ** (1 / 3) * (1 + weights) ** 0.5)


class _Difference:
    """Central differences around the weights the model has, which are put back to the bit."""

    def __init__(self, space: ParameterSpace, replay: Replay) -> None:
        self._space, self._replay = space, replay
        self._weights = space.weights()
        self._reach = reach(space.norm(self._weights), self._weights.dtype)

    def _step(self, vector: Tensor) -> float:
        """Return the multiple of ``vector`` to move by; infinite of a vector of length 0."""
        length = self._space.norm(vector)
        return self._reach / length if length else math.inf

    def _move(self, vector: Tensor, multiple: float) -> None:
        self._space.set(torch.add(self._weights, vector, alpha=multiple))


class Hessian(_Difference):
    """The second derivative of a step's mean loss.

    A product takes two gradients of opposite sign, added up in one exchange between ranks.
    """

    def __call__(self, vector: Tensor) -> Tensor:
        """Return the product with a vector."""
        step = self._step(vector)
        if step == math.inf:
            return torch.zeros_like(vector)
        sides = [
            (partial(self._move, vector, sign * step), sign / (2 * step)) for sign in (1.0, -1.0)
        ]
        try:
            return self._space.flat(self._replay.gradient(sides=sides))
        finally:
            self._space.set(self._weights)


class GaussNewton(_Difference):
    """The Gauss-Newton matrix ``J' L J``: Jacobian J of the output, Hessian L of the loss in it.

    ``J v`` is a difference of outputs. ``L`` is a second derivative of the loss alone. ``J'`` is
    applied by the engine's own backward pass (Schraudolph 2002). A product takes two forward passes
    and one gradient.

    Raises:
        UserError: at a product, if the model does not return one tensor.
    """

    def __call__(self, vector: Tensor) -> Tensor:
        """Return the product with a vector."""
        step = self._step(vector)
        if step == math.inf:
            return torch.zeros_like(vector)
        sides: list[list[Tensor]] = []
        try:
            for sign in (1, -1):
                self._move(vector, sign * step)
                sides.append(self._outputs())
        finally:
            self._space.set(self._weights)
        moved = iter([(a - b) / (2 * step) for a, b in zip(*sides, strict=True)])

        def forward(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
            seen = _Output(model)
            loss, sums = self._replay.train(seen, batch)
            (slope,) = torch.autograd.grad(loss, seen.apart, create_graph=True)
            (bent,) = torch.autograd.grad((slope * next(moved)).sum(), seen.apart)
            return (seen.output * bent.detach()).sum(), sums

        return self._space.flat(self._replay.gradient(forward))

    def _outputs(self) -> list[Tensor]:
        found: list[Tensor] = []

        def forward(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
            seen = _Output(model)
            loss, sums = self._replay.train(seen, batch)
            found.append(seen.apart.detach())
            return loss, sums

        self._replay.visit(forward)
        return found


class _Output(nn.Module):
    """Stands for a model, and keeps what it returned apart from what the loss makes of it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.__dict__["model"] = model  # not a child: its names and hooks are its own

    def forward(self, *arguments: Any, **named: Any) -> Tensor:
        """Return the model's output as a variable of its own."""
        self.output = self.__dict__["model"](*arguments, **named)
        if not isinstance(self.output, Tensor):
            raise UserError(
                "curvature: gauss_newton takes a model that returns one tensor, not a"
                f" {type(self.output).__name__}; take measure=plain"
            )
        self.apart = self.output.detach().requires_grad_()
        return self.apart


def preconditioned(product: Product, root: Tensor) -> Product:
    """Return the product with ``R H R``, R the diagonal matrix of ``root``.

    If R^2 is the inverse of an optimizer's preconditioner, R H R has the same eigenvalues as R^2 H,
    and is symmetric.
    """
    return lambda vector: root * product(root * vector)
