"""Search for the best value of one number with few runs, the same budget for every contender."""

from __future__ import annotations

from collections.abc import Mapping

LEAST = 5  # runs: three at first, and two that the best has a worse one on each side


def next_exponents(values: Mapping[int, float], budget: int) -> list[int]:
    """Return the exponents of two to try next; none once ``budget`` (at least 5) were tried.

    The first three exponents are at distances of four. Later ones go towards or around the best,
    until it has a worse value on each side. If the best value is at an edge, more runs might find a
    better one.

    Args:
        values: results so far, by exponent; higher is better.
    """
    first = [exponent for exponent in (-2, 0, 2) if exponent not in values]
    if first:
        return first
    if len(values) >= budget:
        return []
    best = max(values, key=lambda exponent: values[exponent])
    if best == max(values):
        return [best + 2]
    if best == min(values):
        return [best - 2]
    near = (best + distance * side for distance in range(1, budget) for side in (1, -1))
    return [next(exponent for exponent in near if exponent not in values)]
