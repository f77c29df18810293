"""Divide gradients into buckets (messages), and choose the size of a bucket."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence

BUCKETS_MB = (1.0, 2.0, 4.0, 8.0, 16.0, 25.0, 32.0, 64.0, 128.0, 256.0, 512.0)


def pack(tensors: Iterable[tuple[Hashable, int]], limit: float) -> list[list[int]]:
    """Group tensors, given in the order in which their gradients become ready, into buckets.

    Args:
        tensors: kind and bytes of each tensor; a bucket holds one kind only.
        limit: bytes of a bucket; a tensor that would exceed it opens the next bucket of its kind.

    Returns:
        The buckets in the order in which they were opened, each a list of indices into ``tensors``.
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


def choose_bucket_mb(
    bytes: float,
    backward_seconds: float,
    all_reduce: Callable[[float], float],
    sizes: Sequence[float] = BUCKETS_MB,
) -> float:
    """Return the bucket size in MB that exposes the least communication.

    The model assumes that ``bytes`` of gradients become ready evenly over ``backward_seconds``, and
    that all-reduces run one after the other. Of sizes within 1% the largest is taken.

    Args:
        bytes: bytes of all gradients.
        backward_seconds: seconds of a step's last backward pass.
        all_reduce: returns the seconds of an all-reduce of so many bytes.
        sizes: sizes to choose from, in MB.
    """

    def end(megabytes: float) -> float:
        count = max(1, round(bytes / (megabytes * 1e6)))
        seconds = all_reduce(bytes / count)
        end = 0.0
        for index in range(count):
            end = max(end, (index + 1) / count * backward_seconds) + seconds
        return end

    ends = {size: end(size) for size in sizes}
    return max(size for size in sizes if ends[size] <= 1.01 * min(ends.values()))
