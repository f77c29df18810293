"""Fit a straight line against the logarithm of steps, to test for ultra-slow diffusion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LogFit:
    """``distance = intercept + slope ln(steps)``, by least squares.

    Hoffer et al. 2017, section 4: take weights that diffuse in a random potential whose standard
    deviation grows as distance^gamma. Their distance grows as ``(ln steps)^(1 / gamma)``. A
    straight line means gamma 1.

    Attributes:
        slope, intercept: the fitted line.
        slope_error: standard error of the slope.
        r2: share of the variance that the line explains.
        exponent: 1 / gamma, the slope of ln(distance) against ln(ln steps).
    """

    slope: float
    intercept: float
    slope_error: float
    r2: float
    exponent: float

    def text(self) -> str:
        """Return the line in words."""
        return (
            f"{self.intercept:.3g} + ({self.slope:.3g} ± {self.slope_error:.1g}) ln(steps),"
            f" R² {self.r2:.3f}; as (ln steps)^{self.exponent:.2f}"
        )


def log_fit(steps: Sequence[float], distances: Sequence[float]) -> LogFit | None:
    """Fit distances from the start; None for fewer than four steps past the third, or no motion."""
    points = [(s, d) for s, d in zip(steps, distances, strict=True) if s > 3 and d > 0]
    if len(points) < 4:
        return None
    logs = [math.log(s) for s, _ in points]
    slope, intercept, error, r2 = straight_line(logs, [d for _, d in points])
    exponent = straight_line([math.log(x) for x in logs], [math.log(d) for _, d in points])[0]
    return LogFit(slope, intercept, error, r2, exponent)


def determines_line(x: Sequence[float]) -> bool:
    """Return whether :func:`straight_line` can be fitted: three points, at two places or more."""
    return len(x) >= 3 and len(set(x)) >= 2


def straight_line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float, float]:
    """Fit a line; return slope, intercept, slope's standard error, R^2.

    The points are to satisfy :func:`determines_line`.
    """
    count = len(x)
    centre, height = sum(x) / count, sum(y) / count
    spread = sum((a - centre) ** 2 for a in x)
    slope = sum((a - centre) * (b - height) for a, b in zip(x, y, strict=True)) / spread
    intercept = height - slope * centre
    left = sum((b - intercept - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    total = sum((b - height) ** 2 for b in y)
    error = math.sqrt(left / (count - 2) / spread)
    return slope, intercept, error, 1 - left / total if total > 0 else 1.0
