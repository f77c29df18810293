"""A convex function of one variable on which the heavy ball goes in a circle.

Lessard, Recht, Packard 2016, "Analysis and design of optimization algorithms via integral quadratic
constraints", section 4.5.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

STEEP = 25.0  # the largest slope of the function's gradient; the least is 1
BALL = (1 / 9, 4 / 9)
"""Rate and momentum that are best for quadratics: 4 / (5 + 1)^2 and ((5 - 1) / (5 + 1))^2."""
NESTEROV = (1 / STEEP, 2 / 3)
"""Rate and momentum of Nesterov's method: 1 / 25 and (5 - 1) / (5 + 1)."""


def lessard(x: Tensor) -> Tensor:
    """Return a convex function whose gradient has slopes 1 and 25 (Lessard et al. 2016, 4.5)."""
    middle = torch.where(x < 2, x.square() / 2 + 24 * x - 12, 12.5 * x.square() - 24 * x + 36)
    return torch.where(x < 1, 12.5 * x.square(), middle).sum()


def cycle() -> NDArray[np.float64]:
    """Return the three points that heavy ball visits in turn: two below 1 and one above 2.

    x'' = x' - rate gradient(x') + momentum (x' - x), where the gradient is 25 x, of the last point
    25 x - 24: three linear equations.
    """
    rate, momentum = BALL
    own = 1 + momentum - STEEP * rate
    matrix = np.array([[-own, 1, momentum], [momentum, -own, 1], [1, momentum, -own]])
    # Rows: to the second point from the first, to the third, and back to the first.
    found: NDArray[np.float64] = np.linalg.solve(matrix, np.array([0.0, 0.0, 24 * rate]))
    return found
