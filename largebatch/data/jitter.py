"""Colour distortion and blur of whole batches, each image by its own random numbers.

Chen et al. 2020, "A simple framework for contrastive learning of visual representations" (SimCLR),
appendix A. Every result depends only on its own image and numbers, to the bit, however many images
are processed together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

Change: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Returns images changed, each by its factor, (n, 1, 1, 1)."""

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow has it
COUNT = 12  # numbers that an image needs
JITTERED, GREY, BLURRED = 0.8, 0.2, 0.5  # shares of the images
_DEVIATION = 0.1, 2.0  # of the blur, in pixels


def distorted(images: Tensor, numbers: Tensor, strength: float, blur: bool) -> Tensor:
    """Return images after SimCLR's colour distortion.

    80% of the images are changed in brightness, contrast, saturation and hue, in a random order per
    image. The factors are from 1 - 0.8 s to 1 + 0.8 s, and the hue turns by up to 0.2 s. 20% lose
    their colour. For grey images only brightness and contrast change.

    Args:
        images: float (n, 1 or 3, height, width) within [0, 1].
        numbers: float (n, `COUNT`) within [0, 1), random numbers of the images.
        strength: s; 0 leaves colours as they are, and all images coloured.
        blur: whether to blur half of the images, by a Gaussian of 0.1 to 2 pixels. The kernel is a
            tenth of the image's side wide.
    """
    coloured = images.shape[1] == 3
    if strength > 0:
        factors = 1 + 0.8 * strength * (2 * numbers[:, 0:3] - 1)
        factors = torch.cat((factors.clamp_min(0), 0.2 * strength * (2 * numbers[:, 3:4] - 1)), 1)
        order = numbers[:, 4:8].argsort(dim=1, stable=True)
        order[numbers[:, 8] >= JITTERED] = -1
        for turn in range(4):
            for which, change in enumerate((_brightness, _contrast, _saturation, _hue)):
                if which < 2 or coloured:
                    chosen = order[:, turn] == which
                    images = _some(images, chosen, change, factors[:, which])
        if coloured:
            images = _some(images, numbers[:, 9] < GREY, _saturation, torch.zeros_like(order[:, 0]))
    if blur:
        low, high = _DEVIATION
        deviations = low + (high - low) * numbers[:, 11]
        images = _some(images, numbers[:, 10] < BLURRED, _blurred, deviations)
    return images


def _some(images: Tensor, chosen: Tensor, change: Change, factors: Tensor) -> Tensor:
    """Change the chosen images, each by its factor."""
    rows = chosen.nonzero()[:, 0]
    if not len(rows):
        return images
    shaped = factors[rows].to(images.dtype).view(-1, 1, 1, 1)
    return images.index_copy(0, rows, change(images[rows], shaped))


def _luma(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, 1)
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return (images * factor).clamp(0, 1)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    # A float64 mean: its rounding, which hangs on the kernel, is lost in the float32 of the result.
    mean = _luma(images).double().mean((2, 3), keepdim=True).to(images.dtype)
    return (mean + factor * (images - mean)).clamp(0, 1)


def _saturation(images: Tensor, factor: Tensor) -> Tensor:
    grey = _luma(images)
    return (grey + factor * (images - grey)).clamp(0, 1)


def _hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue by a share of the circle, in the HSV hexcone (Smith 1978)."""
    red, green, blue = images.split(1, 1)
    value, least = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    chroma = value - least
    safe = torch.where(chroma > 0, chroma, 1.0)
    sixth = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sixth = sixth + 6 * turn
    # Each channel falls from value to least and back over the circle, a third after the last.
    offsets = torch.tensor((5.0, 3.0, 1.0), dtype=images.dtype, device=images.device)
    place = (sixth + offsets.view(1, 3, 1, 1)).remainder(6)
    return value - chroma * torch.minimum(place, 4 - place).clamp(0, 1)


def _blurred(images: Tensor, deviation: Tensor) -> Tensor:
    """Convolve rows, then columns, with a Gaussian; beyond the edges the image is mirrored."""
    for dim in (2, 3):
        side = images.shape[dim]
        reach = max(1, side // 20)
        total, weights = torch.zeros_like(images), torch.zeros_like(deviation)
        at = torch.arange(side, device=images.device)
        for offset in range(-reach, reach + 1):
            place = (at + offset).abs()
            place = torch.where(place >= side, 2 * (side - 1) - place, place).clamp(0, side - 1)
            weight = torch.exp(-0.5 * (offset / deviation) ** 2)
            total = total + weight * images.index_select(dim, place)
            weights = weights + weight
        images = total / weights
    return images
