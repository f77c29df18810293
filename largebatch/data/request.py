"""What the trainer asks of a pipeline, and what readers and pipelines hand back."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from largebatch.data.mixing import Mixed


@dataclass(frozen=True)
class Request:
    """One forward's samples, in the order wanted.

    Attributes:
        epoch: which epoch they belong to.
        indices: int64 (n,), sample indices; n may be 0 (a rank without samples in a step).
        positions: int64 (n,), the position in the epoch of each.
        image_size: side of the images in pixels (None: the source's own).
        ghosts: sizes of the ghost batches, which add up to n (empty: the request is one ghost).
    """

    epoch: int
    indices: NDArray[np.int64]
    positions: NDArray[np.int64]
    image_size: int | None = None
    ghosts: tuple[int, ...] = ()


@dataclass
class Samples:
    """Raw samples: a whole request, or a piece of one.

    Attributes:
        images: uint8 or float32 (n, channels, height, width).
        labels: int64 (n,).
        failures: of each unreadable sample its place in the piece, its name and the reason; the
            images and labels are those of the others.
    """

    images: Tensor
    labels: Tensor
    failures: list[tuple[int, str, str]] = field(default_factory=list)


@dataclass
class Batch:
    """The samples of one request, ready for the model.

    Attributes:
        inputs: (n, channels, height, width) on the device, normalised, in the pipeline's type.
        targets: int64 (n,) on the device.
        indices: int64 (n,), the samples: those of the request without the unreadable ones.
        ghosts: sizes of the ghost batches, which add up to n; a ghost with no readable sample is
            left out.
        mixed: the partners' labels and weights where mixup or CutMix is on.
    """

    inputs: Tensor
    targets: Tensor
    indices: NDArray[np.int64]
    ghosts: tuple[int, ...]
    mixed: Mixed | None = None

    def __len__(self) -> int:
        return len(self.indices)
