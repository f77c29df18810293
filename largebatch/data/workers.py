"""Batches read sample by sample in worker processes."""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import multiprocessing.process
import os
import signal
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from largebatch._errors import UserError
from largebatch.data.request import Request, Samples
from largebatch.data.source import SampleSource, UnreadableSample

# Workers share out a request in pieces of this many samples, so that the first batch is ready
# sooner and the memory in flight does not grow with the number of workers.
_PIECE = 32
_PR_SET_PDEATHSIG = 1
_SHARED_MEMORY = "/dev/shm"
_LEFT_TO_PARENT = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class _Piece:
    epoch: int
    indices: NDArray[np.int64]
    image_size: int | None


class WorkerReader:
    """Reads a `SampleSource` with worker processes, a request ahead of the one in use.

    Args:
        source: the samples.
        seed: the run's seed.
        workers: number of processes; 0 reads in the calling one.
        augment: whether samples are drawn views (training) or fixed ones.
        pin_memory: put the samples in page-locked memory, for copies that overlap with a GPU.
    """

    def __init__(
        self, source: SampleSource, seed: int, workers: int, augment: bool, pin_memory: bool
    ) -> None:
        self._pieces = _Pieces()
        self._dataset = _Dataset(source, seed, augment)
        self._workers, self._pin_memory = workers, pin_memory
        self._loader: DataLoader[Any] | None = None
        self._processes: list[multiprocessing.process.BaseProcess] = []
        self._ahead = 0
        # multiprocessing ends workers at exit by SIGTERM, which ours leave to the parent: end them
        # before it waits for them.
        atexit.register(_close, weakref.ref(self))

    def read(self, requests: Iterable[Request]) -> Iterator[tuple[Request, list[Samples]]]:
        """Yield each request with its samples, in order.

        Raises:
            UserError: shared memory is too small, or a sample is not what it should be.
        """
        remaining = iter(requests)
        first = next(remaining, None)
        if first is None:
            return
        loader = self._loader_for(first)
        pending: deque[tuple[Request, int]] = deque()
        self._pieces.source = _cut(chain([first], remaining), pending)
        parts: list[Samples] = []
        for result in _received(self._started(loader)):
            if isinstance(result, str):
                raise UserError(result)
            images, labels, failures = result
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

    def _started(self, loader: DataLoader[Any]) -> Iterator[Any]:
        """Begin an iteration, which starts the workers the first time."""
        self._dataset.parent = os.getpid()
        before = multiprocessing.active_children()
        # A worker answers signals as `begin` says from its first instruction on.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_PARENT)
        try:
            results = iter(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._processes += [p for p in multiprocessing.active_children() if p not in before]
        return results

    def _loader_for(self, request: Request) -> DataLoader[Any]:
        """Return the loader, rebuilt if it cannot hold a request of this size ahead."""
        count = _piece_count(request)
        ahead = -(-count // max(self._workers, 1)) + 1
        if self._loader is not None and ahead <= self._ahead:
            return self._loader
        self.close()
        self._ahead = ahead
        depth = self._affordable(request, ahead) if self._workers else None
        self._loader = DataLoader(
            self._dataset,
            batch_size=None,
            sampler=self._pieces,
            num_workers=self._workers,
            collate_fn=_same,
            worker_init_fn=self._dataset.begin if self._workers else None,
            prefetch_factor=depth,
            persistent_workers=self._workers > 0,
            pin_memory=self._pin_memory,
            # Its own generator: reading data leaves the global one as it was.
            generator=torch.Generator(),
        )
        return self._loader

    def _affordable(self, request: Request, ahead: int) -> int:
        """Return how many pieces a worker may read ahead: ``ahead``, or what half of the shared
        memory holds (containers often have 64 MiB of it)."""
        channels, height, width = self._dataset.source.image_shape
        side = request.image_size
        piece = _PIECE * channels * (side * side if side else height * width)
        try:
            status = os.statvfs(_SHARED_MEMORY)
        except OSError:
            return ahead
        free = status.f_bavail * status.f_frsize
        if piece * self._workers > free:
            raise UserError(
                f"data.workers={self._workers}: their images, {piece >> 20} MiB each, do not fit "
                f"in the {free >> 20} MiB free in {_SHARED_MEMORY}; lower data.workers or start "
                "the container with a larger --shm-size"
            )
        return min(ahead, max(1, free // (2 * piece * self._workers)))


class _Pieces(Sampler[_Piece]):
    """Hands the loader the pieces of whatever `WorkerReader.read` is reading."""

    source: Iterator[_Piece] = iter(())

    def __iter__(self) -> Iterator[_Piece]:
        return self.source


def _piece_count(request: Request) -> int:
    """Return the number of pieces; a request without samples is one empty piece."""
    return max(1, -(-len(request.indices) // _PIECE))


def _cut(requests: Iterable[Request], pending: deque[tuple[Request, int]]) -> Iterator[_Piece]:
    for request in requests:
        count = _piece_count(request)
        pending.append((request, count))
        for number in range(count):
            indices = request.indices[number * _PIECE : (number + 1) * _PIECE]
            yield _Piece(request.epoch, indices, request.image_size)


class _Dataset(Dataset[Any]):
    """What runs in a worker: pieces to samples."""

    def __init__(self, source: SampleSource, seed: int, augment: bool) -> None:
        self.source = source
        self._seed, self._augment = seed, augment
        self.parent = 0
        self._share = False

    def begin(self, worker: int) -> None:
        """Tie the worker's life to its parent's."""
        # Signals to the whole process group are the parent's to answer: it finishes its step first.
        for number in _LEFT_TO_PARENT:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _LEFT_TO_PARENT)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != self.parent:
            os._exit(1)
        torch.set_num_threads(1)
        self._share = True

    def __getitem__(self, piece: _Piece) -> Any:
        """Return (images, labels, failures) of a piece, or the message of the user's mistake."""
        images: torch.Tensor | None = None
        labels: list[int] = []
        failures: list[tuple[int, str, str]] = []
        for place, index in enumerate(piece.indices.tolist()):
            try:
                image, label = self.source.load(
                    index, piece.epoch, self._seed, piece.image_size, self._augment
                )
            except UnreadableSample as error:
                failures.append((place, error.name, str(error)))
                continue
            except UserError as error:
                return str(error)
            if images is None:
                images = self._empty(len(piece.indices), image)
            elif image.shape != images.shape[1:]:
                return (
                    f"data: sample {index} is {tuple(image.shape)}, others are "
                    f"{tuple(images.shape[1:])}; set data.image_size"
                )
            images[len(labels)].copy_(image)
            labels.append(label)
        if images is None:
            channels, height, width = self.source.image_shape
            side = piece.image_size
            images = torch.empty((0, channels, side or height, side or width), dtype=torch.uint8)
        return images[: len(labels)], np.asarray(labels, dtype=np.int64), failures

    def _empty(self, count: int, image: torch.Tensor) -> torch.Tensor:
        """Allocate a piece's images, pixels last as decoders write them, where they can be sent."""
        channels, height, width = image.shape
        shape = (count, height, width, channels)
        if self._share:
            # As torch's own collate does: filling shared memory in place spares a copy.
            size = count * image.numel() * image.element_size()
            storage = torch.UntypedStorage._new_shared(size)
            images = torch.empty(0, dtype=image.dtype).set_(storage).view(shape)
        else:
            images = torch.empty(shape, dtype=image.dtype)
        return images.permute(0, 3, 1, 2)


def _received(results: Iterator[Any]) -> Iterator[Any]:
    """Pass results on; whichever way the death of a worker shows, say that."""
    while True:
        try:
            result = next(results, None)
        except (ConnectionError, EOFError, FileNotFoundError) as error:
            raise RuntimeError("a data worker was killed by signal (out of memory?)") from error
        if result is None:
            return
        yield result


def _close(reference: weakref.ref[WorkerReader]) -> None:
    reader = reference()
    if reader is not None:
        reader.close()


def _same(sample: Any) -> Any:
    return sample
