"""Convert Pillow images to uint8 RGB; refuse pixel formats without an agreed range."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_WHITE_IS_ZERO, _UNSIGNED = 0, 1


def rgb(image: Any) -> NDArray[np.uint8]:
    """Return the pixels of a Pillow image: uint8 (rows, columns, 3).

    Grey is repeated, palettes are looked up, and alpha is dropped without blending. Of deeper
    unsigned pixels the upper 8 bits are taken, as Pillow itself reads 16-bit colour.

    Raises:
        ValueError: signed, 32-bit or floating-point pixels, which have no agreed range.
    """
    tags = image.tag_v2 if image.format == "TIFF" else {}
    if image.mode == "F" or set(tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))) != {_UNSIGNED}:
        raise _without_range(image)
    # Pillow's mode I is 16-bit grey of a PGM (or a PNG, before Pillow 11), else 32 bits.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        grey = np.asarray(image) >> (tags.get(_BITS_PER_SAMPLE, (16,))[0] - 8)
        if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
            grey = 255 - grey
        return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode == "I":
        raise _without_range(image)
    if image.mode == "La":
        image = image.convert("LA")
    # Pillow would warn that it leaves out a palette's transparency.
    image.info.pop("transparency", None)
    return np.array(image.convert("RGB"))


def _without_range(image: Any) -> ValueError:
    return ValueError(
        f"signed, 32-bit or floating-point pixels (Pillow's mode {image.mode}) have no agreed "
        "range; save the image with 8 or 16 bits a channel"
    )
