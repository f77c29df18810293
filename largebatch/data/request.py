"""What the trainer asks of a reader."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Request:
    """One forward's samples, in the order wanted.

    Attributes:
        epoch: which epoch they belong to.
        indices: int64 (n,), sample indices; n may be 0 (a rank without samples in a step).
        positions: int64 (n,), the position in the epoch of each.
        extent: how large a sample is wanted (None: the source's own): the side of an image in
            pixels, the length of a window in tokens.
        ghosts: sizes of the ghost batches, which add up to n (empty: the request is one ghost).
    """

    epoch: int
    indices: NDArray[np.int64]
    positions: NDArray[np.int64]
    extent: int | None = None
    ghosts: tuple[int, ...] = ()
