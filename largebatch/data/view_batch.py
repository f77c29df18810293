"""Two views of each image, ready for the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from largebatch.data.batch import Rows


@dataclass
class ViewBatch(Rows):
    """The images of one request, each in two random views, see :class:`~largebatch.data.Batch`.

    Attributes:
        views: (n, 2, channels, height, width) on the device, normalised, in the pipeline's type;
            ``views.flatten(0, 1)`` costs nothing, since both views of a sample are adjacent.
        targets: int64 (n,) on the device.
        indices, positions: int64 (n,), of the request without the unreadable samples.
        ghosts: sizes of the ghost batches in samples, which add up to n.
    """

    views: Tensor
    targets: Tensor
    indices: NDArray[np.int64]
    positions: NDArray[np.int64]
    ghosts: tuple[int, ...]

    def tensors(self) -> Iterator[Tensor]:
        """Yield views and targets."""
        yield self.views
        yield self.targets
