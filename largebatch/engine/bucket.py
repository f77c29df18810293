"""Gradient buckets: flat buffers whose layout is fixed when they are made."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from largebatch.distributed.bucketing import pack


class Bucket:
    """One message of gradient exchange: parameters of one dtype and device, one flat buffer.

    Every parameter's ``grad`` is a view into the buffer with the parameter's own strides, so no
    copy is made before or after the exchange. The method names are those of ``dist.GradBucket``,
    so that communication hooks written for DistributedDataParallel can be called with it.
    """

    def __init__(self, index: int, parameters: Sequence[torch.nn.Parameter], last: bool) -> None:
        self._index = index
        self._parameters = list(parameters)
        self._last = last
        first = self._parameters[0]
        count = sum(parameter.numel() for parameter in self._parameters)
        self._buffer = torch.zeros(count, dtype=first.dtype, device=first.device)
        self._views: list[Tensor] = []
        offset = 0
        for parameter in self._parameters:
            flat = self._buffer[offset : offset + parameter.numel()]
            self._views.append(_like(flat, parameter))
            offset += parameter.numel()

    def index(self) -> int:
        """Return the bucket's place in the order of exchange."""
        return self._index

    def buffer(self) -> Tensor:
        """Return the flat gradients of all of the bucket's parameters."""
        return self._buffer

    def set_buffer(self, tensor: Tensor) -> None:
        """Overwrite the flat gradients."""
        self._buffer.copy_(tensor)

    def gradients(self) -> list[Tensor]:
        """Return each parameter's gradient, a view into the buffer."""
        return self._views

    def parameters(self) -> list[torch.nn.Parameter]:
        """Return the parameters, in the order of their gradients in the buffer."""
        return self._parameters

    def is_last(self) -> bool:
        """Return whether no bucket comes after this one in a step."""
        return self._last

    def attach(self) -> None:
        """Zero the buffer and let every parameter accumulate its gradient into it."""
        self._buffer.zero_()
        for parameter, view in zip(self._parameters, self._views, strict=True):
            parameter.grad = view


def _like(flat: Tensor, parameter: Tensor) -> Tensor:
    """View ``flat`` with the shape and, where it is dense (channels_last), the strides given."""
    if torch.ops.aten.is_non_overlapping_and_dense(parameter):
        return flat.as_strided(parameter.size(), parameter.stride(), flat.storage_offset())
    return flat.view(parameter.size())


def make_buckets(parameters: Sequence[torch.nn.Parameter], megabytes: float) -> list[Bucket]:
    """Group ``parameters`` into buckets of about ``megabytes`` MB, last parameter first.

    The backward pass finishes with a model's first layers, so the reverse of registration is about
    the order in which gradients become ready. The layout depends on nothing else and never changes
    during a run. torch's own DDP rebuilds its buckets after the first backward pass of a process.
    This changes the order of summation, and so the bits, between a run and its resumption.
    """
    order = [parameter for parameter in reversed(parameters) if parameter.requires_grad]
    groups = pack(
        (((p.dtype, p.device), p.numel() * p.element_size()) for p in order), megabytes * 1e6
    )
    return [
        Bucket(i, [order[place] for place in group], i == len(groups) - 1)
        for i, group in enumerate(groups)
    ]
