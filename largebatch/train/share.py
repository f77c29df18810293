"""Divide the samples of a step among ranks: whole ghost batches, in contiguous blocks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache


@dataclass(frozen=True)
class Part:
    """A rank's samples of one forward pass: ``start`` to ``stop`` of the step's order.

    Attributes:
        first_ghost, ghosts: index of its first ghost in the step, and number of ghosts. If several
            ranks hold a ghost together, the part holds this rank's share of one ghost.
        ghost_size: samples of each ghost but the last, which takes the rest.
        idle: whether the pass only keeps step with other ranks. Its gradient and statistics do not
            count, and its samples belong to other ranks.
    """

    start: int
    stop: int
    first_ghost: int
    ghosts: int
    ghost_size: int
    idle: bool = False

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of samples in each ghost, in order."""
        full = self.ghosts - 1
        return (*[self.ghost_size] * full, self.stop - self.start - full * self.ghost_size)


def ghost_count(size: int, ghost_size: int, minimum: int = 1) -> int:
    """Count the ghosts of ``size`` samples.

    >>> ghost_count(70, 32), ghost_count(65, 32), ghost_count(65, 32, minimum=2)
    (3, 3, 2)
    """
    full, rest = divmod(size, ghost_size)
    return full + (rest >= minimum or (rest > 0 and full == 0))


@lru_cache(maxsize=64)
def share(
    size: int,
    ghost_size: int,
    micro: int | None,
    rank: int,
    world_size: int,
    minimum: int = 1,
) -> tuple[Part, ...]:
    """Return the forward passes of ``rank`` in a step of ``size`` samples.

    Ghosts go to ranks in contiguous blocks of equal size, except that the first ranks may take one
    more. With fewer ghosts than ranks the last ranks have none.

    Args:
        ghost_size: samples of a ghost batch; 1 if no norm reads a batch.
        micro: samples of a forward pass, a multiple of ``ghost_size``; None for the whole share.
        minimum: samples a ghost needs to have statistics: 2 with a batch norm.
    """
    total = ghost_count(size, ghost_size, minimum)
    first, end = _part(total, rank, world_size)
    per_pass = max(1, end - first if micro is None else micro // ghost_size)
    passes = []
    for at in range(first, end, per_pass):
        until = min(at + per_pass, end)
        stop = size if until == total else until * ghost_size
        passes.append(Part(at * ghost_size, stop, at, until - at, ghost_size))
    return tuple(passes)


def share_over_ranks(
    size: int, ghost_size: int, span: int, rank: int, world_size: int, minimum: int = 1
) -> tuple[Part, ...]:
    """Return the forward passes of ``rank`` if ``span`` adjacent ranks hold a ghost together.

    A group of ranks takes ghosts as one rank does in :func:`share`, one ghost per pass. The ranks
    of a group take contiguous parts of each ghost, as even as possible, and make the same passes. A
    part may be empty if a ghost has fewer samples than ranks.
    """
    group, member = divmod(rank, span)
    passes = []
    for whole in share(size, ghost_size, 1, group, world_size // span, minimum):
        start, stop = _part(whole.stop - whole.start, member, span)
        bounds = (whole.start + start, whole.start + stop)
        passes.append(Part(*bounds, whole.first_ghost, 1, stop - start))
    return tuple(passes)


def even_ghost_size(size: int, micro: int | None, span: int, world_size: int) -> int:
    """Return the size of a ghost if none is set: all samples of ``span`` ranks in a forward pass.

    Args:
        micro: largest number of samples of a rank in a forward pass; None for the whole share.

    >>> even_ghost_size(100, None, 2, 4), even_ghost_size(100, 10, 2, 4)
    (50, 17)
    """
    groups = world_size // span
    passes = 1 if micro is None else -(-size // (groups * micro * span))
    return -(-size // (groups * passes))


def _part(total: int, index: int, parts: int) -> tuple[int, int]:
    """Return where part ``index`` of ``total`` things in even parts begins and ends."""
    each, more = divmod(total, parts)
    first = index * each + min(index, more)
    return first, first + each + (index < more)


def in_step(passes: tuple[Part, ...], count: int, minimum: int) -> tuple[Part, ...]:
    """Return ``passes``, preceded by idle passes of ``minimum`` samples to make ``count`` in all.

    For engines whose ranks exchange messages in every pass.
    """
    idle = Part(0, minimum, 0, 1, minimum, idle=True)
    return (idle,) * (count - len(passes)) + passes
