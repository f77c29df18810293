"""Forward passes in training mode that leave no trace in running statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Put every running statistic of ``model`` back at the end of a block, to the bit.

    Norms normalise as in training meanwhile. This covers torch's own norms as well, and statistics
    that wait for ``step_end``.
    """
    buffers = [
        buffer
        for module in model.modules()
        if isinstance(module, _NormBase)
        for buffer in module.buffers(recurse=False)
    ]
    saved = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, saved, strict=True):
            buffer.copy_(value)
