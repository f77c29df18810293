"""Images and their labels, ready for the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from largebatch.data.batch import Rows
from largebatch.data.mixing import Mixed


@dataclass
class ImageBatch(Rows):
    """The images of one request, see :class:`~largebatch.data.batch.Batch`.

    Attributes:
        inputs: (n, channels, height, width) on the device, normalised, in the pipeline's type.
        targets: int64 (n,) on the device.
        indices, positions: int64 (n,), of the request without the unreadable samples.
        ghosts: sizes of the ghost batches, which add up to n; a ghost with no readable sample is
            left out.
        mixed: the partners' labels and weights if mixup or CutMix is on.
    """

    inputs: Tensor
    targets: Tensor
    indices: NDArray[np.int64]
    positions: NDArray[np.int64]
    ghosts: tuple[int, ...]
    mixed: Mixed | None = None

    def tensors(self) -> Iterator[Tensor]:
        """Yield inputs and targets, and the tensors of ``mixed``."""
        yield self.inputs
        yield self.targets
        if self.mixed is not None:
            yield from (self.mixed.partners, self.mixed.weight, self.mixed.rows)
            yield from self.mixed.hidden.values()
