"""Lanczos' method for vectors that are divided over ranks.

Libraries for this (scipy's ARPACK, hessian-eigenthings, curvlinops) take whole vectors on one
device, and decide the number of products themselves. Here a vector may lie over the ranks of a
sharded model. The caller sets the number of products, each of which costs as much as two steps.
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
    """Approximate eigenvalues and eigenvectors of a symmetric matrix (Ritz pairs).

    Attributes:
        values: (m,) float64, ascending: approximate eigenvalues.
        vectors: (m, n): the approximate eigenvectors, this rank's part.
        errors: (m,) float64: an eigenvalue of the matrix lies within this distance of each value.
        weights: (m,) float64: squared components of the start vector along ``vectors``. With
            ``values`` they are a quadrature of the spectrum seen by the start vector (Golub and
            Welsch 1969).
    """

    values: Tensor
    vectors: Tensor
    errors: Tensor
    weights: Tensor


@torch.no_grad()
def lanczos(
    apply: Callable[[Tensor], Tensor], start: Tensor, products: int, space: ParameterSpace
) -> Ritz:
    """Return the Ritz pairs of a symmetric matrix after ``products`` matrix-vector products.

    Every new vector is made orthogonal to all earlier ones, twice (Parlett 1998, section 6.9), so
    that no eigenvalue is found twice. The method ends early if the vectors span the whole Krylov
    space of the start vector.

    Args:
        apply: multiplies a vector by the matrix.
        start: start vector, not zero; the nearer to the wanted eigenvectors, the fewer products.

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
