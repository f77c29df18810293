"""Forward passes in training mode that leave no trace in running statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

_blocks = 0  # one plain global, as in ``place``: forwards of one process run one at a time


def frozen() -> bool:
    """Return whether a block of :func:`frozen_statistics` is open."""
    return _blocks > 0


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Restore every running statistic of ``model`` at the end of a ``with`` block, to the bit.

    Inside the block, norms normalise as in training, and call no observer of ghost gradients.
    Torch's own norms are covered too, and so are statistics that wait for ``step_end``.
    """
    global _blocks
    buffers = [
        buffer
        for module in model.modules()
        if isinstance(module, _NormBase)
        for buffer in module.buffers(recurse=False)
    ]
    saved = [buffer.clone() for buffer in buffers]
    _blocks += 1
    try:
        yield
    finally:
        _blocks -= 1
        for buffer, value in zip(buffers, saved, strict=True):
            buffer.copy_(value)
