"""Where a forward's samples lie in the global step; the trainer tells the norms by this module.

A step of the trainer is a sequence of ghost batches. Each rank takes some of them, in one or more
micro-batches. A norm cannot know the position of a forward's ghosts in the step by itself. It needs
the position to give every ghost the weight in the running statistics that the ghost has when one
process takes the whole step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Place:
    """A forward whose ghosts are number ``first`` and following of the ``total`` of its step.

    Attributes:
        sizes: samples in each ghost of the forward, as the step was divided. None: norms divide
            their input by their own ghost size.
        ranks: process group whose ranks hold a ghost together; None: each ghost lies on one rank.
        step: number of samples of the run before the step, which tells steps apart; None: no run.
        samples: sum of ``sizes``; computed once a pass, since every norm asks.
        even: whether all ghosts but the last have the same size.
    """

    first: int
    total: int
    sizes: tuple[int, ...] | None = None
    ranks: Any = None
    step: int | None = None
    samples: int = 0
    even: bool = True


# One plain global: forwards of one process run one at a time, torch.compile can guard it, and
# autograd's threads (recomputation under activation checkpointing) see it too.
_current: Place | None = None


class ghost_place:
    """In a ``with`` block, tell norms that forwards hold ghosts ``first`` onwards of ``total``.

    Inside the block, norms put their statistics aside until ``largebatch.nn.step_end(model,
    total)``, which every rank must call once per optimizer step. A module must then run once per
    micro-batch.

    Args:
        sizes, ranks, step: see :class:`Place`.

    Raises:
        ValueError: ``first`` is not in ``[0, total)``.
    """

    def __init__(
        self,
        first: int,
        total: int,
        sizes: tuple[int, ...] | None = None,
        ranks: Any = None,
        step: int | None = None,
    ) -> None:
        if not 0 <= first < total:
            raise ValueError(f"ghost_place: first={first} must lie in [0, total={total})")
        of = sizes or ()
        self._place = Place(first, total, sizes, ranks, step, sum(of), len(set(of[:-1])) < 2)

    def __enter__(self) -> None:
        global _current
        self._before, _current = _current, self._place

    def __exit__(self, *raised: object) -> None:
        global _current
        _current = self._before


class ghost_rows:
    """Inside a ``with`` block, tell norms that each sample has several adjacent rows in the input.

    Ghosts are still counted in samples, so two views of one image are in one ghost.

    Args:
        rows: rows per sample.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows

    def __enter__(self) -> None:
        global _current
        self._before, place = _current, _current
        if place is not None and place.sizes is not None:
            sizes = tuple(self._rows * size for size in place.sizes)
            _current = replace(place, sizes=sizes, samples=self._rows * place.samples)

    def __exit__(self, *raised: object) -> None:
        global _current
        _current = self._before


def current_place() -> Place | None:
    """Return the place set by the innermost ``ghost_place``, or None outside of it."""
    return _current
