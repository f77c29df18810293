"""Decode only a box of a JPEG, by nvImageCodec if it is installed.

Rows below the box are never read, and columns and rows around the box skip the inverse transform:
about a seventh of a training view's time, with the same bits as a full decode. The library comes
with DALI (``pip install 'largebatch[dali]'``).
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

END = b"\xff\xd9"  # the last marker of a JPEG
_own = threading.local()


def decode_region(data: bytes, box: tuple[int, int, int, int]) -> NDArray[np.uint8] | None:
    """Decode the pixels of a box.

    Args:
        data: the bytes of an RGB or grey JPEG.
        box: (top, left, height, width) in pixels.

    Returns:
        uint8 (height, width, 3), or None if the library is absent or declines the file.
    """
    # A file cut short must fail as a whole, though the box may lie before the cut.
    if not data.endswith(END):
        return None
    codec, decoder = _decoder()
    if decoder is None:
        return None
    top, left, height, width = box
    region = codec.Region(top, left, top + height, left + width)
    image = decoder.decode(codec.CodeStream(data).get_sub_code_stream(region=region))
    return None if image is None else np.asarray(image)


def _decoder() -> tuple[Any, Any]:
    """Return the library and this thread's decoder, or (None, None)."""
    if not hasattr(_own, "decoder"):
        _own.decoder = (None, None)
        # The child of a process that uses CUDA may not touch CUDA, and the library might.
        if not torch.cuda._is_in_bad_fork():
            try:
                from nvidia import nvimgcodec as codec

                _own.decoder = (
                    codec,
                    codec.Decoder(
                        device_id=codec.NVIMGCODEC_DEVICE_CPU_ONLY,
                        max_num_cpu_threads=1,
                        backends=[codec.Backend(codec.CPU_ONLY)],
                        # As libjpeg-turbo's own default, and so as every other decoder here.
                        options=":fancy_upsampling=1",
                    ),
                )
            except (ImportError, RuntimeError):
                pass
    return _own.decoder
