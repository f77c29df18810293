"""The order of text read in streams: each stream continues where it ended a step ago."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from largebatch._errors import UserError


class StreamOrder:
    """Cuts ``n`` windows of a text into streams that are read side by side.

    Stream ``s`` holds the windows ``s * n / streams`` and following. Position ``p`` of an epoch is
    the next window of stream ``p % streams``. So a step of ``streams`` samples takes one window of
    each stream, which continues the stream's window of the step before (Dai et al. 2019,
    "Transformer-XL", section 3.2). All epochs have the same order.

    Args:
        n: number of windows in an epoch.
        streams: number of streams read side by side.

    Raises:
        UserError: the windows do not divide evenly into streams.
    """

    def __init__(self, n: int, streams: int) -> None:
        if streams < 1 or n % streams:
            near = max(1, n // max(streams, 1)) * max(streams, 1)
            raise UserError(
                f"{n:,} windows do not divide into {streams} streams: take {near:,} of them"
            )
        self.n, self.streams = n, streams

    def indices(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Return the windows at positions [start, stop) of an epoch: int64 (stop - start,)."""
        assert 0 <= start <= stop <= self.n, (start, stop, self.n)
        windows, streams = divmod(np.arange(start, stop, dtype=np.int64), self.streams)
        return streams * (self.n // self.streams) + windows

    def require_divides(self, sizes: dict[str, int], total: int) -> None:
        """Refuse a step size that does not continue each stream exactly once.

        Args:
            sizes: samples of a step, by the config key that sets the size.
            total: samples in the run.

        Raises:
            UserError: the message names the key.
        """
        for key, size in sizes.items():
            if size != self.streams:
                raise UserError(
                    f"{key}={size}: a step takes one window of each of the {self.streams} streams"
                    f" that the data are read in; take {self.streams}"
                )
        if total % self.streams:
            raise UserError(
                f"schedule.length: {total:,} samples leave {total % self.streams} in the last step,"
                f" which takes one window of each of {self.streams} streams"
            )
