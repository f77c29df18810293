"""Reduce the points of a curve so that its drawing looks the same."""

from __future__ import annotations

from collections.abc import Sequence


def thin(values: Sequence[float], most: int) -> list[int]:
    """Return the indices of the points to draw, at most about ``most``, in order.

    Each bucket of neighbours keeps its lowest and its highest point, so that no spike is lost. The
    first and the last point are kept. Short series are kept whole.
    """
    count = len(values)
    if count <= most:
        return list(range(count))
    buckets = max(1, most // 2)
    kept = {0, count - 1}
    for bucket in range(buckets):
        inside = range(bucket * count // buckets, (bucket + 1) * count // buckets)
        kept.add(min(inside, key=values.__getitem__))
        kept.add(max(inside, key=values.__getitem__))
    return sorted(kept)
