"""Buffers as they were before a step, for a step that is left out."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class HeldBuffers:
    """Keeps a copy of a model's buffers over a step; running statistics change in its passes.

    Whether the step counts is known on the device alone, so both values are at hand there and one
    is chosen: a few operations on flat copies, however many buffers there are.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._parts: list[tuple[list[Tensor], Tensor]] = []

    @torch.no_grad()
    def hold(self) -> None:
        """Copy the buffers as they are."""
        alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for buffer in self._model.buffers():
            alike.setdefault((buffer.device, buffer.dtype), []).append(buffer)
        self._parts = [(buffers, _flat(buffers)) for buffers in alike.values()]

    @torch.no_grad()
    def put_back(self, found_inf: Tensor) -> None:
        """Give the buffers the values held if ``found_inf`` (0-d) is not 0."""
        for buffers, before in self._parts:
            left_out = found_inf.to(before.device) != 0
            chosen = torch.where(left_out, before, _flat(buffers))
            pieces = chosen.split([buffer.numel() for buffer in buffers])
            shaped = [p.view(b.shape) for p, b in zip(pieces, buffers, strict=True)]
            torch._foreach_copy_(buffers, shaped)
        self._parts = []


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
