"""Lanczos' recurrence on vectors that ranks hold their parts of.

The libraries for it (scipy's ARPACK, hessian-eigenthings, curvlinops) take whole vectors on one
device, and ask for products until they are content. Here a vector may lie over the ranks of a
sharded model, and the number of products, each as dear as two steps, is the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from largebatch.probes.parameter_space import ParameterSpace

TINY = 1e-10  # of the largest entry: below it, what is left of a vector is rounding


@dataclass(frozen=True)
class Ritz:
    """What some products have found of a symmetric matrix.

    Attributes:
        values: (m,) float64, ascending: approximate eigenvalues.
        vectors: (m, n): their vectors, of this rank's part.
        errors: (m,) float64: an eigenvalue of the matrix lies within so much of each value.
        weights: (m,) float64: squared shares of the start in the vectors: with ``values``, a
            quadrature of the spectrum as the start sees it (Golub and Welsch 1969).
    """

    values: Tensor
    vectors: Tensor
    errors: Tensor
    weights: Tensor


@torch.no_grad()
def lanczos(
    apply: Callable[[Tensor], Tensor], start: Tensor, products: int, space: ParameterSpace
) -> Ritz:
    """Return what ``products`` products with a symmetric matrix find of it.

    Every new vector is made orthogonal to all before, twice (Parlett 1998, section 6.9), so that no
    eigenvalue comes twice. It ends early where the vectors so far span all that the start reaches.

    Args:
        apply: the product with a vector.
        start: not zero; the nearer to the eigenvectors wanted, the fewer products it takes.

    Raises:
        ArithmeticError: a product is not finite.
    """
    basis = (start / space.norm(start)).unsqueeze(0)
    diagonal: list[float] = []
    beside: list[float] = []
    while True:
        row = apply(basis[-1])
        diagonal.append(float(space.dots(row, basis[-1])))
        for _ in range(2):
            row = row - space.dots(basis, row).to(row.dtype) @ basis
        beside.append(space.norm(row))
        if not math.isfinite(diagonal[-1] + beside[-1]):
            raise ArithmeticError("a product is not finite")
        scale = max(*map(abs, diagonal), *beside[:-1], 1e-300)
        if len(diagonal) == products or not beside[-1] > TINY * scale:
            break
        basis = torch.cat((basis, (row / beside[-1]).unsqueeze(0)))
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    off = torch.tensor(beside[:-1], dtype=torch.float64)
    matrix += torch.diag(off, 1) + torch.diag(off, -1)
    values, within = torch.linalg.eigh(matrix)
    vectors = within.T.to(basis) @ basis
    return Ritz(values, vectors, (beside[-1] * within[-1]).abs(), within[0].square())
