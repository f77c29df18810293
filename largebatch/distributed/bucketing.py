"""Which gradients travel together."""

from __future__ import annotations

from collections.abc import Hashable, Iterable


def pack(tensors: Iterable[tuple[Hashable, int]], limit: float) -> list[list[int]]:
    """Group tensors, given in the order in which their gradients become ready, into buckets.

    Args:
        tensors: each one's kind (only one kind to a bucket) and its bytes.
        limit: bytes of a bucket; a tensor that would pass it opens the next one of its kind.

    Returns:
        The buckets in the order in which they were opened, each with the places of its tensors.
    """
    groups: list[list[int]] = []
    sizes: list[int] = []
    open_group: dict[Hashable, int] = {}
    for place, (kind, size) in enumerate(tensors):
        at = open_group.get(kind)
        if at is None or sizes[at] + size > limit:
            at = open_group[kind] = len(groups)
            groups.append([])
            sizes.append(0)
        groups[at].append(place)
        sizes[at] += size
    return groups
