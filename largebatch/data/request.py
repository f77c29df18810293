"""A request: the samples that the trainer asks a reader for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Request:
    """The samples of one forward pass, in order.

    Attributes:
        epoch: which epoch they belong to.
        indices: int64 (n,), sample indices; n may be 0 (a rank without samples in a step).
        positions: int64 (n,), position of each sample in the epoch.
        extent: size of a sample (None: the source's own): side of an image in pixels, or length of
            a window in tokens.
        ghosts: sizes of the ghost batches, which add up to n (empty: the request is one ghost).
    """

    epoch: int
    indices: NDArray[np.int64]
    positions: NDArray[np.int64]
    extent: int | None = None
    ghosts: tuple[int, ...] = ()
