"""Batches read sample by sample in worker processes."""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import multiprocessing.connection
import multiprocessing.process
import os
import signal
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from largebatch._errors import RunFailure, UserError
from largebatch.data.pieces import Samples, Samplewise
from largebatch.data.request import Request
from largebatch.data.shared_memory import PIECE, Share, share
from largebatch.data.source import UnreadableSample
from largebatch.processes.lifetime import STOPPING

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class _Piece:
    epoch: int
    indices: NDArray[np.int64]
    extent: int | None


class WorkerReader:
    """Reads images one by one with worker processes, a request ahead of the one in use.

    A request is divided into pieces among the workers. So the first batch is ready sooner, and the
    memory in use does not grow with the number of workers.

    Args:
        source: the samples.
        seed: the run's seed.
        workers: number of processes; 0 reads in the calling one.
        augment: whether samples are random views (training) or fixed ones.
        pin_memory: put the samples in page-locked memory, for copies that overlap with a GPU.
    """

    def __init__(
        self, source: Samplewise, seed: int, workers: int, augment: bool, pin_memory: bool
    ) -> None:
        self._pieces = _Pieces()
        self._dataset = _Dataset(source, seed, augment)
        self._workers, self._pin_memory = workers, pin_memory
        self._loader: DataLoader[Any] | None = None
        self._processes: list[multiprocessing.process.BaseProcess] = []
        self._largest = 0, 0
        self._share = Share(0)
        # multiprocessing ends workers at exit by SIGTERM, which ours leave to the parent: end them
        # before it waits for them.
        atexit.register(_close, weakref.ref(self))

    def read(self, requests: Iterable[Request]) -> Iterator[tuple[Request, list[Samples]]]:
        """Yield each request with its samples, in order.

        Raises:
            UserError: shared memory is too small, or a sample does not have the required form.
            RunFailure: a worker was killed, or shared memory is full.
        """
        remaining = iter(requests)
        first = next(remaining, None)
        if first is None:
            return
        loader = self._loader_for(first)
        pending: deque[tuple[Request, int]] = deque()
        self._pieces.source = self._cut(chain([first], remaining), pending)
        parts: list[Samples] = []
        for result in self._received(loader):
            if isinstance(result, Exception):
                raise result
            images, labels, failures = result
            if self._share.copy:
                images = images.clone()
            parts.append(Samples(images, torch.from_numpy(labels), failures))
            request, count = pending[0]
            if len(parts) == count:
                pending.popleft()
                yield request, parts
                parts = []

    def close(self) -> None:
        """End the workers; the reader may be used again, with new ones."""
        iterator = getattr(self._loader, "_iterator", None)
        if iterator is not None:
            iterator._shutdown_workers()
        self._loader = None
        for process in self._processes:
            process.kill()
            process.join()
        self._processes = []

    def _received(self, loader: DataLoader[Any]) -> Iterator[Any]:
        """Start an iteration and pass its results on."""
        with self._one_line():
            results = self._started(loader)
        while True:
            with self._one_line():
                result = next(results, None)
            if result is None:
                return
            yield result

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        """Say what happened to a worker, whichever way its death shows.

        Raises:
            RunFailure: in place of what the loader raises.
        """
        try:
            yield
        except (OSError, EOFError, RuntimeError) as error:
            if isinstance(error, RunFailure) or not self._workers:
                raise
            # A pipe breaks a moment before its process has ended, and a sentinel is a pipe too.
            ends = {process.sentinel: process for process in self._processes}
            for sentinel in multiprocessing.connection.wait(list(ends), timeout=1):
                ends[cast(int, sentinel)].join(1)
            codes = [process.exitcode or 0 for process in self._processes]
            if min(codes, default=0) < 0:
                cause = f"a data worker was killed by signal {-min(codes)}"
                cause += " (out of memory?)" if -min(codes) == signal.SIGKILL else ""
            elif any(codes):
                cause = f"a data worker ended with exit code {max(codes)}"
            elif isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise  # a fault of ours
            else:
                cause = f"data workers cannot be started or reached: {error}"
            raise RunFailure(
                f"{cause}; mend that, or lower data.workers, and run the same command again, the "
                "last checkpoint stands"
            ) from error

    def _started(self, loader: DataLoader[Any]) -> Iterator[Any]:
        """Begin an iteration, which starts the workers the first time."""
        self._dataset.parent = os.getpid()
        before = multiprocessing.active_children()
        # A worker answers signals as `begin` says from its first instruction on.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        handler = signal.getsignal(signal.SIGCHLD)
        try:
            results = iter(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            # The loader's handler tells of a dead worker by an exception wherever the main thread
            # happens to be, in the middle of a checkpoint too; it shows at the next batch as well.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
            self._processes += [p for p in multiprocessing.active_children() if p not in before]
        return results

    def _loader_for(self, request: Request) -> DataLoader[Any]:
        """Return the loader, rebuilt if it cannot hold a request of this size ahead."""
        size, count = self._sample_bytes(request), len(request.indices)
        pieces = -(-count // PIECE)
        if self._loader is not None and size <= self._largest[0] and pieces <= self._largest[1]:
            return self._loader
        self.close()
        self._largest = size, pieces
        if self._workers:
            self._share = share(size, count, self._workers, self._pin_memory)
        self._loader = DataLoader(
            self._dataset,
            batch_size=None,
            sampler=self._pieces,
            num_workers=self._workers,
            collate_fn=_same,
            worker_init_fn=self._dataset.begin if self._workers else None,
            prefetch_factor=self._share.ahead or None,
            persistent_workers=self._workers > 0,
            pin_memory=self._pin_memory,
            # Its own generator: reading data leaves the global one as it was.
            generator=torch.Generator(),
        )
        return self._loader

    def _sample_bytes(self, request: Request) -> int:
        source, side = self._dataset.source, request.extent
        channels, height, width = source.image_shape
        return channels * (side * side if side else height * width) * source.dtype.itemsize

    def _cut(
        self, requests: Iterable[Request], pending: deque[tuple[Request, int]]
    ) -> Iterator[_Piece]:
        """Cut requests into pieces; one without samples is one empty piece."""
        for request in requests:
            size = PIECE
            if self._share.piece is not None:
                size = max(1, min(PIECE, self._share.piece // self._sample_bytes(request)))
            count = max(1, -(-len(request.indices) // size))
            pending.append((request, count))
            for number in range(count):
                indices = request.indices[number * size : (number + 1) * size]
                yield _Piece(request.epoch, indices, request.extent)


class _Pieces(Sampler[_Piece]):
    """Hands the loader the pieces of whatever `WorkerReader.read` is reading."""

    source: Iterator[_Piece] = iter(())

    def __iter__(self) -> Iterator[_Piece]:
        return self.source


class _Dataset(Dataset[Any]):
    """What runs in a worker: pieces to samples."""

    def __init__(self, source: Samplewise, seed: int, augment: bool) -> None:
        self.source = source
        self._seed, self._augment = seed, augment
        self.parent = 0
        self._share = False

    def begin(self, worker: int) -> None:
        """Tie the worker's life to its parent's."""
        # Signals to the whole process group are the parent's to answer: it finishes its step first.
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != self.parent:
            os._exit(1)
        torch.set_num_threads(1)
        self._share = True

    def __getitem__(self, piece: _Piece) -> Any:
        """Return (images, labels, failures) of a piece, or the error that ends the run."""
        images: torch.Tensor | None = None
        labels: list[int] = []
        failures: list[tuple[int, str, str]] = []
        for place, index in enumerate(piece.indices.tolist()):
            try:
                image, label = self.source.load(
                    index, piece.epoch, self._seed, piece.extent, self._augment
                )
                if images is None:
                    images = self._empty(len(piece.indices), image)
            except UnreadableSample as error:
                failures.append((place, error.name, str(error)))
                continue
            except (UserError, RunFailure) as error:
                return error
            images[len(labels)].copy_(image)
            labels.append(label)
        if images is None:
            channels, height, width = self.source.image_shape
            shape = (0, channels, piece.extent or height, piece.extent or width)
            images = torch.empty(shape, dtype=self.source.dtype)
        return images[: len(labels)], np.asarray(labels, dtype=np.int64), failures

    def _empty(self, count: int, image: torch.Tensor) -> torch.Tensor:
        """Allocate a piece's images, pixels last as decoders write them, where they can be sent."""
        channels, height, width = image.shape
        shape = (count, height, width, channels)
        if self._share:
            # As torch's own collate does: filling shared memory in place spares a copy.
            size = count * image.numel() * image.element_size()
            try:
                storage = torch.UntypedStorage._new_shared(size)
            except RuntimeError as error:
                raise RunFailure(
                    f"a data worker finds no {size / 2**20:.1f} MiB of shared memory ({error}); "
                    "lower data.workers or start the container with a larger --shm-size"
                ) from None
            images = torch.empty(0, dtype=image.dtype).set_(storage).view(shape)
        else:
            images = torch.empty(shape, dtype=image.dtype)
        return images.permute(0, 3, 1, 2)


def _close(reference: weakref.ref[WorkerReader]) -> None:
    reader = reference()
    if reader is not None:
        reader.close()


def _same(sample: Any) -> Any:
    return sample
