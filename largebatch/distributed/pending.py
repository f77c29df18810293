"""The work object of an all-reduce that runs on its own threads."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future


class Pending(dist.Work):
    """A c10d work: done when :meth:`succeed` or :meth:`fail` has been called.

    On failure the work's future fails too, because DistributedDataParallel reads only the future.
    c10d's own ``_create_work_from_future`` would hide the error.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()
        self._tensors = tensors
        self._error: Exception | None = None
        self._done = threading.Event()
        devices: list[Any] = [tensor.device for tensor in tensors[:1] if tensor.is_cuda]
        self._raw: Future[list[Tensor]] = Future(devices=devices or None)
        # An error only becomes one of the C++ future where a callback raises it.
        self._future = self._raw.then(self._value)

    def succeed(self) -> None:
        """Mark the work as done; on CUDA, as of the current stream."""
        self._raw.set_result(self._tensors)
        self._done.set()

    def fail(self, error: Exception) -> None:
        """Make every wait raise ``error``; the first error is kept."""
        if not self._done.is_set():
            self._error = error
            self._raw.set_result(self._tensors)
            self._done.set()

    def _value(self, _: Future[list[Tensor]]) -> list[Tensor]:
        if self._error is not None:
            raise self._error
        return self._tensors

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        """Wait for the result; on CUDA the current stream waits, not the caller."""
        if not self._done.wait(timeout.total_seconds() or None):
            raise RuntimeError(f"torus all-reduce: not done after {timeout.total_seconds():g} s")
        if self._error is not None:
            raise self._error
        if self._tensors[0].is_cuda:
            self._future.wait()
        return True

    def settle(self) -> None:
        """Wait until the work is done or has failed."""
        self._done.wait()

    def synchronize(self) -> None:
        """Order later operations of the stream after the result."""
        self.wait()

    def is_completed(self) -> bool:
        """Return whether the result is there, or an error."""
        return self._done.is_set()

    def is_success(self) -> bool:
        """Return whether the result is there."""
        return self._done.is_set() and self._error is None

    def exception(self) -> Exception | None:
        """Return the error, if there is one."""
        return self._error

    def result(self) -> list[Tensor]:
        """Return the reduced tensors."""
        self.wait()
        return self._tensors

    def get_future(self) -> Future[list[Tensor]]:
        """Return a future of the reduced tensors."""
        return self._future


def together(
    works: Sequence[dist.Work], reduced: Sequence[Tensor], tensors: list[Tensor]
) -> Pending:
    """Return one work that is done when all ``works`` are and ``reduced`` is copied to ``tensors``.

    Args:
        works: the works of the parts.
        reduced: the tensors that the works write: each of ``tensors`` itself, or a copy.
        tensors: the result of the combined work.
    """
    pending = Pending(tensors)

    def end(done: Future[Any]) -> None:
        try:
            for part in done.value():
                part.value()
            with torch.no_grad():
                for tensor, result in zip(tensors, reduced, strict=True):
                    if result is not tensor:
                        tensor.copy_(result)
            pending.succeed()
        except Exception as error:  # the one who waits is to see it
            pending.fail(error)

    torch.futures.collect_all([work.get_future() for work in works]).then(end)
    return pending
