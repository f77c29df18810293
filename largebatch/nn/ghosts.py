"""Divide samples into ghost batches, and tell which models need this.

Ghosts are consecutive runs of ``ghost_size`` samples, as torch.split makes them. The last may be
shorter. A last ghost too short for a variance joins the ghost before it.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def split_ghosts(
    samples: int, ghost_size: int, minimum: int = 1, limit: int | None = None
) -> tuple[int, int]:
    """Return ``(full, tail)``: ``full`` ghosts of ``ghost_size``, then one of ``tail`` if not 0.

    Args:
        samples: samples to split, at least 1.
        ghost_size: samples of a full ghost.
        minimum: a last ghost with fewer samples than this joins the one before it.
        limit: largest number of ghosts; a last ghost beyond it joins the one before. Needed where
            the step was divided by a stricter minimum, for a norm with fewer values per sample.
    """
    full, tail = samples // ghost_size, samples % ghost_size  # torch.compile knows no divmod
    short = tail < minimum or (limit is not None and full + 1 > limit)
    if full and tail and short:
        return full - 1, ghost_size + tail
    return full, tail


def ghost_sizes(samples: int, ghost_size: int, minimum: int = 1) -> list[int]:
    """Return the sizes of the ghosts of a step, in order: their sum is ``samples``."""
    full, tail = split_ghosts(samples, ghost_size, minimum)
    return [ghost_size] * full + [tail] * (tail > 0)


def has_batch_norm(model: nn.Module) -> bool:
    """Return whether ``model`` holds any norm whose statistics are taken over samples."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def minimum_samples(model: nn.Module) -> int:
    """Return the fewest samples a ghost of ``model`` may have: 2 with batch norms, else 1."""
    return 2 if has_batch_norm(model) else 1
