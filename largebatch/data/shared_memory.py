"""Limit how much workers prepare ahead, by the free shared memory that passes images."""

from __future__ import annotations

import os
from dataclasses import dataclass

from largebatch._errors import UserError

PIECE = 32
"""Most samples that a worker hands over at once."""

_PATH = "/dev/shm"


@dataclass(frozen=True)
class Share:
    """How a reader and its workers use shared memory.

    Attributes:
        ahead: number of pieces that each worker prepares ahead.
        piece: largest number of bytes of a piece; None: no limit.
        copy: whether the reader copies images in use out of shared memory.
    """

    ahead: int
    piece: int | None = None
    copy: bool = False


def share(sample: int, samples: int, workers: int, pinned: bool) -> Share:
    """Divide this rank's share of free shared memory (containers often have 64 MiB in all).

    Workers have a request and one piece each ready. The reader holds the batch in use and the next
    one, unless it moves them to pinned memory. If this takes more than half of the free memory, the
    reader copies, pieces are smaller, and fewer are prepared ahead.

    Args:
        sample: bytes per sample.
        samples: number of samples per request.
        workers: number of processes.
        pinned: whether the reader moves images to pinned memory.

    Raises:
        UserError: there is not enough room for one sample per worker.
    """
    ahead = -(-max(samples, 1) // (PIECE * max(workers, 1))) + 1
    try:
        status = os.statvfs(_PATH)
    except OSError:
        return Share(ahead)
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    free = status.f_bavail * status.f_frsize // ranks
    if sample * (workers + 1) > free:
        raise UserError(
            f"data.workers={workers}: their images, {sample / 2**20:.1f} MiB each, do not fit "
            f"in this rank's {free / 2**20:.1f} MiB of what is free in {_PATH}; lower "
            "data.workers or start the container with a larger --shm-size"
        )
    half = free // (2 * sample)  # in samples
    ready = ahead * workers * min(PIECE, samples)
    if ready + (0 if pinned else 2 * samples) <= half:
        return Share(ahead)
    piece = min(PIECE, max(1, half // (2 * workers)))
    pieces = -(-samples // piece)
    ahead = min(-(-pieces // workers) + 1, max(1, half // (piece * workers)))
    return Share(ahead, piece * sample, copy=not pinned)
