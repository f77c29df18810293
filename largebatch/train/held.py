"""Keep a model's buffers from before a step, to restore them if the step is skipped."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class HeldBuffers:
    """Keeps a copy of a model's buffers during a step, whose passes change running statistics.

    Only the device knows whether the step is skipped. So both values are kept there and one is
    chosen, with a few operations on flat copies, however many buffers there are.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._parts: list[tuple[list[Tensor], Tensor]] = []

    @torch.no_grad()
    def hold(self) -> None:
        """Copy the present buffers."""
        alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for buffer in self._model.buffers():
            alike.setdefault((buffer.device, buffer.dtype), []).append(buffer)
        self._parts = [(buffers, _flat(buffers)) for buffers in alike.values()]

    @torch.no_grad()
    def put_back(self, found_inf: Tensor) -> None:
        """Restore the copied values if ``found_inf`` (0-d) is not 0."""
        for buffers, before in self._parts:
            left_out = found_inf.to(before.device) != 0
            chosen = torch.where(left_out, before, _flat(buffers))
            pieces = chosen.split([buffer.numel() for buffer in buffers])
            shaped = [p.view(b.shape) for p, b in zip(pieces, buffers, strict=True)]
            torch._foreach_copy_(buffers, shaped)
        self._parts = []


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
