"""Random resized crops of whole batches, each image by its own random numbers."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_TRIES = 10
COUNT = 2 * _TRIES + 2  # numbers that a box needs


def boxes(numbers: NDArray[np.float64], height: int, width: int, least: float) -> NDArray[np.int64]:
    """Draw the boxes of RandomResizedCrop: int64 (n, 4) of (top, left, height, width).

    A box has a share of the area from ``least`` to 1 and an aspect ratio from 3/4 to 4/3 on a log
    scale. After ten boxes that do not fit, the largest centred box of the nearest allowed ratio is
    taken (Szegedy et al. 2015, arXiv:1409.4842, as torchvision implements it).

    Args:
        numbers: float64 (n, `COUNT`) within [0, 1).
        height, width: size of the image, in pixels.
    """
    tries = numbers[:, : 2 * _TRIES].reshape(-1, _TRIES, 2)
    area = height * width * (least + (1.0 - least) * tries[:, :, 0])
    ratio = np.exp(np.log(4 / 3) * (2 * tries[:, :, 1] - 1))
    columns, rows = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (columns > 0) & (columns <= width) & (rows > 0) & (rows <= height)
    first = fits.argmax(1)[:, None]
    drawn = np.concatenate(
        (np.take_along_axis(rows, first, 1), np.take_along_axis(columns, first, 1)), 1
    )
    centred = min(height, max(1, round(width / (3 / 4)))), min(width, max(1, round(height * 4 / 3)))
    found = fits.any(1)[:, None]
    size = np.where(found, drawn, np.asarray(centred)).astype(np.int64)
    room = np.asarray((height, width)) - size
    corner = np.where(
        found, (numbers[:, 2 * _TRIES : COUNT] * (room + 1)).astype(np.int64), room // 2
    )
    return np.concatenate((corner, size), 1)


def resized(images: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut a box out of each image and resize it bilinearly, ignoring pixels outside of the box.

    Args:
        images: float (n, channels, rows, columns).
        boxes: int64 (n, 4), no larger than ``size``, because no antialiasing filter is applied.
        size: (height, width) of the results.
    """
    for dim in (2, 3):
        first, length = boxes[:, dim - 2], boxes[:, dim]
        images = _stretched(images, dim, first, length, size[dim - 2])
    return images


def _stretched(images: Tensor, dim: int, first: Tensor, length: Tensor, size: int) -> Tensor:
    """Resize a range of each image's rows or columns to ``size`` of them."""
    at = torch.arange(size, device=images.device, dtype=torch.float64)
    place = ((at + 0.5) * (length[:, None] / size) - 0.5).clamp_min(0)
    low = torch.minimum(place.long(), length[:, None] - 1)
    high = torch.minimum(low + 1, length[:, None] - 1)
    share = (place - low).to(images.dtype)
    shape = [len(images), 1, 1, 1]
    shape[dim] = size
    wide = list(images.shape)
    wide[dim] = size

    def taken(index: Tensor) -> Tensor:
        return images.gather(dim, (first[:, None] + index).view(shape).expand(wide))

    below = taken(low)
    return below + share.view(shape) * (taken(high) - below)
