"""The loss barrier between two networks."""

from __future__ import annotations

from collections.abc import Sequence


def loss_barrier(places: Sequence[float], losses: Sequence[float]) -> float:
    """Return the largest excess of the loss over the line between the losses of the ends.

    The result is ``max_t L(w(t)) - ((1 - t) L(w(0)) + t L(w(1)))`` over the given places. It is at
    least 0, since the ends are among the places (Frankle et al. 2020, "Linear mode connectivity",
    section 2; Entezari et al. 2022, definition 2.2).

    Args:
        places: places in [0, 1], with 0 and 1 among them.
        losses: loss at each place.

    Raises:
        ValueError: an end is missing.
    """
    found = dict(zip(places, losses, strict=True))
    if 0.0 not in found or 1.0 not in found:
        raise ValueError("a barrier is measured from end to end: places 0 and 1 are missing")
    first, last = found[0.0], found[1.0]
    # The ends by themselves: rounding of their line may leave less than nothing of either.
    inside = (loss - ((1 - t) * first + t * last) for t, loss in found.items() if 0 < t < 1)
    return max(0.0, *inside) if len(found) > 2 else 0.0
