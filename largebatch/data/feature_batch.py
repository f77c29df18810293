"""Batches of feature vectors with targets, for regression."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from largebatch.data.batch import Rows


@dataclass
class FeatureBatch(Rows):
    """The rows of one request, see :class:`~largebatch.data.batch.Batch`.

    Attributes:
        inputs: (n, features, 1, 1) on the device: images of one pixel, as for ``arrays``.
        targets: (n, outputs) on the device, in the inputs' type.
        indices, positions: int64 (n,), of the request.
        ghosts: sizes of the ghost batches, which add up to n.
    """

    inputs: Tensor
    targets: Tensor
    indices: NDArray[np.int64]
    positions: NDArray[np.int64]
    ghosts: tuple[int, ...]

    def tensors(self) -> Iterator[Tensor]:
        """Yield inputs and targets."""
        yield self.inputs
        yield self.targets
