"""Find where a function returns to its value at 0, in few evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

FARTHEST = 2.0**20  # multiples: beyond it there is no end
GROWTH = 16.0  # of the way, at most, from one evaluation to the next
BEYOND = 1.3  # of the way to an estimate that no evaluation lies behind, so that the next one does
NEAR = 1.2  # times the farthest evaluation: no farther can an estimate be believed
SAME = 1e-4  # relative, of an evaluation and the end that is worked out from it


@dataclass(frozen=True)
class Room:
    """The place where a function returns to its value at 0.

    Attributes:
        multiple: the place. If ``bounded`` is False: the farthest place at which the function was
            below its value at 0.
    """

    multiple: float
    bounded: bool


def find_room(rise: Callable[[float], float], guess: float, evaluations: int) -> Room:
    """Return the place c > 0 where ``rise`` (0 at 0) returns to 0 from below.

    The search is for a root of ``rise(c) / c``. For a quadratic this is a straight line, whose root
    two evaluations give exactly. For any smooth function a parabola through the last three points
    comes near. A bracket of the root, once found, is never left.

    Args:
        rise: the function minus its value at 0; above 0 or not finite beyond the root.
        guess: first place to evaluate.
        evaluations: largest number of evaluations, at least 3.
    """
    points: list[tuple[float, float]] = []
    place = min(max(guess, 1 / FARTHEST), FARTHEST)
    for _ in range(evaluations):
        value = rise(place)
        points.append((place, value / place if math.isfinite(value) else math.inf))
        estimate = _root(points)
        low, high = _ends(points)
        found = any(abs(c - estimate) <= SAME * abs(estimate) for c, _ in points)
        if found or low >= FARTHEST:
            break
        place = _within(estimate, low, high)
    if found or low <= estimate <= (NEAR * low if high == math.inf else high):
        return Room(estimate, True)
    if high == math.inf:
        return Room(low, False)
    return Room((low + high) / 2 if low else max(0.0, min(estimate, high)), True)


def _ends(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Return the nearest evaluation above 0, and the farthest below that one that is not."""
    high = min((c for c, y in points if y > 0), default=math.inf)
    return max((c for c, y in points if c < high), default=0.0), high


def _within(estimate: float, low: float, high: float) -> float:
    """Return where to evaluate next: at the estimate, unless that leads astray."""
    if math.isnan(estimate):
        return (low + high) / 2 if high < math.inf else 2 * low
    if high == math.inf:
        behind = low + BEYOND * (estimate - low)
        return min(max(behind, 1.25 * low), GROWTH * low) if estimate > low else GROWTH * low
    if low == 0:
        return min(max(estimate, high / GROWTH), 0.8 * high)
    if not low < estimate < high:
        return (low + high) / 2
    return estimate


def _root(points: list[tuple[float, float]]) -> float:
    """Return where the inverse interpolation of the last three finite points is 0.

    A single point has none, and neither have points of one value.
    """
    known = sorted((y, c) for c, y in points[-3:] if math.isfinite(y))
    if len(known) < 2 or any(a[0] == b[0] for a, b in pairwise(known)):
        return math.nan
    total = 0.0
    for y, c in known:
        others = [other for other, _ in known if other != y]
        total += c * math.prod(other / (other - y) for other in others)
    return total
