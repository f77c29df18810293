"""Batches of image files decoded and resized by NVIDIA DALI: threads on a CPU, nvJPEG on a GPU.

The order, the crops and the flips come from the same keyed draws as the worker processes'
(`FileSource.view`), and are fed to DALI batch by batch. Only the arithmetic differs. DALI decodes
in full where the workers decode large views at a fraction of the size, and rounds differently when
resizing.
"""

from __future__ import annotations

import atexit
import queue
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from largebatch._errors import RunFailure, UserError
from largebatch.data.decode import Photograph, UnreadableImage, View
from largebatch.data.pieces import ImageFiles, Samples
from largebatch.data.request import Request
from largebatch.data.source import UnreadableSample

_PIECE = 128  # most samples of one DALI batch; larger requests are several
_AHEAD = 2  # batches in DALI, and as many again that are ready


def require_dali() -> None:
    """Refuse ``data.pipeline=dali`` if DALI is absent.

    Raises:
        UserError: the message tells how to install DALI.
    """
    try:
        import nvidia.dali  # noqa: F401
    except (ImportError, OSError) as error:
        raise UserError(
            f"data.pipeline='dali': DALI cannot be used ({error}): pip install 'largebatch[dali]',"
            " or set data.pipeline=torchvision"
        ) from None


@dataclass
class _Piece:
    """Samples of one request that are one batch of DALI's.

    Attributes:
        doubtful: DALI has failed on one of these files, or on one read with them: decode them all
            here, so that DALI only resizes.
    """

    request: Request
    indices: NDArray[np.int64]
    last: bool
    doubtful: bool = False
    labels: list[int] = field(default_factory=list)
    failures: list[tuple[int, str, str]] = field(default_factory=list)


class DaliReader:
    """Reads image files with DALI, some batches ahead of the one in use.

    Args:
        source: the image files.
        seed: the run's seed.
        workers: number of threads that decode, and of threads that read files.
        augment: whether samples are random views (training) or fixed ones.
        device: with a GPU, images are decoded on the GPU and stay there.

    Raises:
        UserError: DALI is absent.
    """

    def __init__(
        self, source: ImageFiles, seed: int, workers: int, augment: bool, device: torch.device
    ) -> None:
        require_dali()
        self._source, self._seed, self._augment = source, seed, augment
        self._threads, self._device = max(workers, 1), device
        self._graph: Any = None
        self._pieces: Iterator[_Piece] = iter(())
        self._fed: deque[_Piece] = deque()
        self._files: ThreadPoolExecutor
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        # A thread inside DALI must not outlive the interpreter.
        atexit.register(_close, weakref.ref(self))

    def read(self, requests: Iterable[Request]) -> Iterator[tuple[Request, list[Samples]]]:
        """Yield each request with its samples, in order."""
        self.close()
        self._stop = stop = threading.Event()
        ready = queue.Queue[Any](_AHEAD)
        pump = partial(self._pump, iter(requests), stop, ready)
        self._thread = threading.Thread(target=pump, name="dali", daemon=True)
        self._thread.start()
        parts: list[Samples] = []
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                piece, samples = item
                parts.append(samples)
                if piece.last:
                    yield piece.request, parts
                    parts = []
        finally:
            stop.set()

    def close(self) -> None:
        """End the reading thread; the reader may be used again."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _pump(
        self, requests: Iterator[Request], stop: threading.Event, ready: queue.Queue[Any]
    ) -> None:
        """Run in the thread: put (piece, samples) for all requests, then None; or what failed."""

        def put(item: Any) -> None:
            while not stop.is_set():
                with suppress(queue.Full):
                    ready.put(item, timeout=0.1)
                    break

        try:
            with ExitStack() as stack:
                if self._device.type == "cuda":
                    torch.cuda.set_device(self._device)
                    # On the default stream its copies would wait for the training step.
                    stack.enter_context(torch.cuda.stream(torch.cuda.Stream(self._device)))
                self._files = stack.enter_context(ThreadPoolExecutor(self._threads))
                for item in self._samples(_cut(requests, stop)):
                    put(item)
            put(None)
        except BaseException as error:
            self._graph = None
            put(error)

    def _samples(self, pieces: Iterator[_Piece]) -> Iterator[tuple[_Piece, Samples]]:
        self._pieces = pieces
        self._fed.clear()
        while True:
            self._graph = self._graph or self._build()
            try:
                (images,) = self._graph.run()
            except StopIteration:
                self._graph.reset()
                return
            except RuntimeError as error:
                # DALI gives up the whole graph over one damaged file and does not name it.
                again = list(self._fed)
                if all(piece.doubtful for piece in again):
                    raise RunFailure(f"DALI failed: {error}") from error
                self._fed.clear()
                self._graph = None
                fresh = [_Piece(p.request, p.indices, p.last, doubtful=True) for p in again]
                self._pieces = chain(fresh, self._pieces)
                continue
            piece = self._fed.popleft()
            pixels = self._pixels(images)[: len(piece.labels)]
            labels = torch.tensor(piece.labels, dtype=torch.int64)
            yield piece, Samples(pixels, labels, piece.failures)

    def _build(self) -> Any:
        """Make the graph: window, resize, centre, flip."""
        from nvidia.dali import fn, pipeline_def, types

        gpu = self._device.type == "cuda"

        @pipeline_def(  # type: ignore[untyped-decorator, unused-ignore]
            batch_size=_PIECE,
            num_threads=self._threads,
            device_id=(self._device.index or 0) if gpu else None,
            prefetch_queue_depth=_AHEAD,
        )
        def graph() -> Any:
            # Whole batches (batch=True): fed sample by sample, DALI drops a last partial one.
            data, start, shape, resized, flip, *centre = fn.external_source(
                source=self._feed,
                num_outputs=5 if self._augment else 7,
                batch=True,
            )
            images = fn.decoders.image_slice(
                data,
                device="mixed" if gpu else "cpu",
                start=start,
                shape=shape,
                axis_names="HW",
                output_type=types.RGB,
                # As the other decoders here: libjpeg-turbo's defaults, orientation tags ignored.
                jpeg_fancy_upsampling=True,
                adjust_orientation=False,
            )
            images = fn.resize(
                images, size=resized, interp_type=types.INTERP_LINEAR, antialias=True
            )
            if centre:
                images = fn.slice(images, start=centre[0], shape=centre[1], axis_names="HW")
            return fn.flip(images, horizontal=flip)

        built = graph()
        built.build()
        return built

    def _feed(self) -> tuple[Any, ...]:
        """Return the next batch for DALI; StopIteration at the end."""
        piece = next(self._pieces)
        size = piece.request.extent or self._source.size
        read = partial(self._encoded, piece, size)
        files: list[NDArray[np.uint8]] = []
        views: list[View] = []
        for place, found in enumerate(self._files.map(read, piece.indices.tolist())):
            if isinstance(found, UnreadableSample):
                piece.failures.append((place, found.name, str(found)))
            else:
                files.append(found[0])
                views.append(found[1])
                piece.labels.append(self._source.label(int(piece.indices[place])))
        if not files:  # DALI has no empty batches: one pixel that is thrown away
            files.append(_uncompressed(np.zeros((1, 1, 3), np.uint8)))
            views.append(View((0, 0, 1, 1), 1, (size, size), (0, 0), size, False))
        self._fed.append(piece)
        boxes = np.array([view.box for view in views], dtype=np.int32)
        fed = (
            files,
            np.ascontiguousarray(boxes[:, :2]),
            np.ascontiguousarray(boxes[:, 2:]),
            np.array([view.resized for view in views], dtype=np.float32),
            np.array([view.flip for view in views], dtype=np.int32),
        )
        if self._augment:
            return fed
        corners = np.array([view.corner for view in views], dtype=np.int32)
        return (*fed, corners, np.full_like(corners, size))

    def _encoded(
        self, piece: _Piece, size: int, index: int
    ) -> tuple[NDArray[np.uint8], View] | UnreadableSample:
        """Read one file and settle its view.

        A whole JPEG is left to DALI. Anything else is decoded here, so that all pipelines agree on
        what is an image, and handed over without compression.
        """
        path = self._source.path(index)
        try:
            image = Photograph.read(path)
            epoch, augment = piece.request.epoch, self._augment
            view = self._source.view(image, index, epoch, self._seed, size, augment)
            if image.plain and not piece.doubtful:
                return np.frombuffer(image.data, dtype=np.uint8), view
            whole = (0, 0, image.height, image.width)
            return _uncompressed(image.pixels(whole)), view
        except UnreadableImage as error:
            return UnreadableSample(path, error)

    def _pixels(self, images: Any) -> Tensor:
        """Copy a batch out of DALI's memory: uint8 (n, 3, size, size), channels last."""
        pixels = from_dlpack(images.as_tensor()).clone()
        if pixels.is_cuda:
            torch.cuda.current_stream(self._device).synchronize()
        return pixels.permute(0, 3, 1, 2)


def _cut(requests: Iterator[Request], stop: threading.Event) -> Iterator[_Piece]:
    for request in requests:
        count = max(1, -(-len(request.indices) // _PIECE))
        for number in range(count):
            if stop.is_set():
                return
            indices = request.indices[number * _PIECE : (number + 1) * _PIECE]
            yield _Piece(request, indices, last=number == count - 1)


def _uncompressed(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Write uint8 (rows, columns, 3) as the bytes of a PPM file."""
    header = b"P6 %d %d 255\n" % (pixels.shape[1], pixels.shape[0])
    return np.concatenate([np.frombuffer(header, dtype=np.uint8), pixels.reshape(-1)])


def _close(reference: weakref.ref[DaliReader]) -> None:
    reader = reference()
    if reader is not None:
        reader.close()
