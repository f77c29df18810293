"""Bytes to normalised floating-point inputs, on the device where they are used."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from largebatch.data.pieces import Images


class Normalizer:
    """Computes (pixel * scale - mean) / std, in float32 (float64 for float64), as a
    multiply-add over the memory in its own order.

    Args:
        source: source that gives scale, mean and std.
        device: where the inputs are wanted.
        dtype: type of the inputs.
        channels_last: memory format of the inputs.
    """

    def __init__(
        self, source: Images, device: torch.device, dtype: torch.dtype, channels_last: bool
    ) -> None:
        self.device, self.dtype = device, dtype
        self._channels = source.image_shape[0]
        # One channel has the same memory in both formats.
        self._last = channels_last and self._channels > 1
        self._work = torch.float64 if dtype == torch.float64 else torch.float32
        mean = torch.tensor(source.mean, dtype=torch.float64)
        std = torch.tensor(source.std, dtype=torch.float64)
        self._scalars = float(source.scale / std[0]), float(-mean[0] / std[0])
        factor = (source.scale / std).to(device, self._work)
        offset = (-mean / std).to(device, self._work)
        self._plane = factor.view(-1, 1), offset.view(-1, 1)
        self._rows: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, pieces: Sequence[Tensor]) -> Tensor:
        """Join pieces (n_i, channels, height, width) of raw images into one batch of inputs."""
        count, shape = sum(len(piece) for piece in pieces), pieces[0].shape[1:]
        channels, height, width = shape
        if self._last:
            memory = torch.empty(
                (count, height, width, channels), dtype=self._work, device=self.device
            )
            inputs = memory.permute(0, 3, 1, 2)
        else:
            memory = inputs = torch.empty(
                (count, channels, height, width), dtype=self._work, device=self.device
            )
        start = 0
        for piece in pieces:
            # Bytes travel to the device before they are widened.
            piece = piece.to(self.device, non_blocking=True)
            inputs[start : start + len(piece)].copy_(piece)
            start += len(piece)
        if channels == 1:
            memory.mul_(self._scalars[0]).add_(self._scalars[1])
        elif self._last:
            factor, offset = self._row(width)
            rows = memory.view(count * height, width * channels)
            torch.addcmul(offset, rows, factor, out=rows)
        else:
            factor, offset = self._plane
            rows = memory.view(count, channels, height * width)
            torch.addcmul(offset, rows, factor, out=rows)
        return inputs.to(self.dtype)

    def _row(self, width: int) -> tuple[Tensor, Tensor]:
        """Factor and offset repeated over a row, which keeps the inner loop long and contiguous."""
        if width not in self._rows:
            factor, offset = self._plane
            self._rows[width] = factor.view(-1).repeat(width), offset.view(-1).repeat(width)
        return self._rows[width]
