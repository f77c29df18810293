"""Collectives on tensors that are not contiguous in memory.

gloo sends a tensor's memory as if it were contiguous. So a column of a matrix would send its
neighbours' numbers, and two ranks with different strides would mix elements.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future


def stretch(tensor: Tensor) -> Tensor:
    """Return ``tensor`` itself if it is contiguous, else a contiguous copy to write back later.

    Raises:
        RuntimeError: elements share memory, as in an expanded tensor, so there is no place for the
            result. Raised before anything is sent, so the group remains usable.
    """
    if tensor.is_contiguous():
        return tensor
    require_place(tensor)
    return tensor.contiguous()


def require_place(tensor: Tensor) -> None:
    """Raise the error of :func:`stretch` if elements share memory; make no copy."""
    if overlaps(tensor):
        raise RuntimeError(
            f"a collective cannot write a tensor of shape {tuple(tensor.shape)} and strides"
            f" {tensor.stride()}, whose elements share memory: clone() it first"
        )


def overlaps(tensor: Tensor) -> bool:
    """Return whether elements of ``tensor`` certainly share memory."""
    return tensor.layout == torch.strided and torch._debug_has_internal_overlap(tensor) == 1


def apart(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return ``tensors``, with copies of those that may share memory with another.

    If both were reduced at once, one would be read after the other had been written.
    """
    separate, reach = list(tensors), 0
    strided = [i for i, each in enumerate(tensors) if each.layout == torch.strided and each.numel()]
    for index in sorted(strided, key=lambda i: tensors[i].data_ptr()):
        tensor = tensors[index]
        start = tensor.data_ptr()
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        last = sum((size - 1) * stride for size, stride in steps)
        if start < reach:
            separate[index] = tensor.clone()
        reach = max(reach, start + (last + 1) * tensor.element_size())
    return separate


def on_contiguous(operate: Callable[..., dist.Work | None], *args: Any, **options: Any) -> Any:
    """Call ``operate`` with contiguous copies of the tensors that are not, and write these back.

    Tensors that ``operate`` only reads are written back too, unchanged. Tensors whose elements
    share memory are not written back. If such a tensor may be an output, call :func:`require_place`
    first.
    """
    copies: list[tuple[Tensor, Tensor]] = []

    def whole(value: Any) -> Any:
        if isinstance(value, Tensor):
            if value.layout != torch.strided or value.is_contiguous():
                return value
            copy = value.contiguous()
            if not overlaps(value):
                copies.append((value, copy))
            return copy
        return [whole(item) for item in value] if isinstance(value, (list, tuple)) else value

    arguments = [whole(argument) for argument in args]
    named = {name: whole(value) for name, value in options.items()}
    work = operate(*arguments, **named)
    return WrittenBack(work, copies) if copies and work is not None else work


class WrittenBack(dist.Work):
    """A work that copies its results into the original tensors when done."""

    def __init__(self, work: dist.Work, copies: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self._work, self._copies = work, copies
        self._lock = threading.Lock()

    def _write(self) -> None:
        with self._lock, torch.no_grad():
            for tensor, copy in self._copies:
                tensor.copy_(copy)
            self._copies = []

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        """Wait for the result, in its place."""
        self._work.wait(timeout)
        self._write()
        return True

    def synchronize(self) -> None:
        """Order later operations of the stream after the result."""
        self.wait()

    def is_completed(self) -> bool:
        """Return whether the result is there."""
        if self._work.is_completed():
            self._write()
            return True
        return False

    def get_future(self) -> Future[Any]:
        """Return a future of the operation's own value, after the results are in their place."""

        def end(done: Future[Any]) -> Any:
            value = done.value()
            self._write()
            return value

        return self._work.get_future().then(end)
