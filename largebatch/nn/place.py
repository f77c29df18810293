"""Where a forward's samples lie in the global step: the bridge from the trainer to the norms.

A step of the trainer is a sequence of ghost batches, of which each rank takes some, in one or more
micro-batches. A norm inside a forward cannot know that by itself, and needs it to give every ghost
the weight in the running statistics that it has when one process takes the whole step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Place:
    """A forward whose ghosts are number ``first`` and following of the ``total`` of its step.

    Attributes:
        sizes: samples of each ghost of the forward, as the step was divided; None: norms divide
            what they are given by their own ghost size.
        ranks: process group whose ranks hold a ghost together; None: a ghost is one rank's.
        step: the sample of the run at which the step begins, which tells steps apart; None: of
            no run.
        samples: of all ghosts. even: whether all but the last have as many. Both are worked out
            once a pass, since every norm asks.
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
    """Tell the norms that forwards inside are ghosts ``first`` and following of ``total``.

    Inside it, norms put their statistics aside until ``largebatch.nn.step_end(model, total)``,
    which every rank calls once per optimizer step. A module must then run once per micro-batch.

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


def current_place() -> Place | None:
    """Return the place set by the innermost ``ghost_place``, or None outside of it."""
    return _current
