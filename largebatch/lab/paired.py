"""Compare two methods by pairs of runs, one pair for each seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import starmap
from statistics import fmean, stdev

from largebatch.lab.experiment import Check, agreed, spread

CONFIDENCE = 0.95

Order = Callable[[float, float], bool]
"""Such as ``operator.lt``."""


def compared(
    what: str,
    claimed: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    holds: Order,
) -> Check:
    """Return the check of an order that must hold for every seed's pair."""
    said = agreed(starmap(holds, zip(ours, theirs, strict=True)))
    return Check(what, claimed, f"{spread(ours)} against {spread(theirs)}", said)


def exceeds(ours: Sequence[float], theirs: Sequence[float], by: float = 0.0) -> bool | None:
    """Return whether ``ours`` exceeds ``theirs`` by more than ``by``, on average over the pairs.

    None if the 95% interval (Student's) of the paired differences contains ``by``, or if there is
    only one pair.
    """
    from scipy.special import stdtrit

    differences = [a - b - by for a, b in zip(ours, theirs, strict=True)]
    if len(differences) < 2:
        return None
    count = len(differences)
    reach = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * stdev(differences) / count**0.5
    mean = fmean(differences)
    return None if abs(mean) <= reach else mean > 0
