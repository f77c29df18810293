"""A search for the best of one number with few runs: the same budget for every contender."""

from __future__ import annotations

from collections.abc import Mapping

LEAST = 5  # runs: three at first, and two that the best has a worse one on each side


def next_exponents(values: Mapping[int, float], budget: int) -> list[int]:
    """Return the exponents of two to try next, none when ``budget`` of them, at least 5, are.

    Three at distances of four first; then towards or around the best, so that it has a worse one on
    each side. A best one on the edge is one that more runs might better.

    Args:
        values: found by now, by exponent; higher is better.
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
