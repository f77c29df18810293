"""Turn requests into normalised batches on the device, in order and ahead of time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from largebatch._errors import UserError
from largebatch.data.config import DataConfig
from largebatch.data.image_batch import ImageBatch
from largebatch.data.mixing import mix_batch
from largebatch.data.normalize import Normalizer
from largebatch.data.pieces import Images, Samples
from largebatch.data.request import Request
from largebatch.data.source import Delivery, Reader


class Pipeline(Reader):
    """Reads, augments and normalises the samples of requests.

    The pixels of a sample depend only on (seed, epoch, sample index), and mixing on (seed, epoch,
    position). The number of workers and ranks and the sizes of the requests change nothing.

    Args:
        source: the samples.
        config: the ``data`` section.
        seed: the run's seed.
        device: where the batches are wanted.
        train: whether to augment and mix (training) or to read plainly (evaluation).
        dtype: of the inputs.
        channels_last: memory format of the inputs.
    """

    def __init__(
        self,
        source: Images,
        config: DataConfig,
        seed: int,
        device: torch.device | str = "cpu",
        train: bool = True,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> None:
        self.device = torch.device(device)
        self._config, self._seed, self._train = config, seed, train
        self._size = None if config.image_size is None else source.image_shape[1:]
        self._normalize = Normalizer(source, self.device, dtype, channels_last)
        delivery = Delivery(seed, self.device, train, dtype, channels_last)
        self._pieces = source.pieces(config, delivery)
        self.skipped: set[str] = set()
        """Names of the unreadable samples left out so far (``data.skip_corrupt`` allows them)."""

    def read(self, requests: Iterable[Request]) -> Iterator[ImageBatch]:
        """Yield the batch of each request, in order; requests are drawn ahead of their batches.

        Only one iteration is possible at a time: a second call ends the first.

        Raises:
            UserError: more samples are unreadable than ``data.skip_corrupt`` allows, or a sample
                does not have the required form.
        """
        read = self._pieces.read(requests)
        if self.device.type == "cuda":
            return self._copied_ahead(read)
        return (self._batch(request, pieces) for request, pieces in read)

    def close(self) -> None:
        """End the workers."""
        self._pieces.close()

    def _copied_ahead(self, read: Iterator[tuple[Request, list[Samples]]]) -> Iterator[ImageBatch]:
        """Prepare each batch on a stream of its own while the one before it is in use."""
        side = torch.cuda.Stream(self.device)
        ready: ImageBatch | None = None
        for request, pieces in read:
            with torch.cuda.stream(side):
                following = self._batch(request, pieces)
            for piece in pieces:
                if piece.images.is_cuda:  # decoded there, on a stream of the reader's
                    piece.images.record_stream(side)
            if ready is not None:
                yield _handed_over(ready, self.device)
            # The next batch was queued before the one just used: wait for both cost nothing.
            torch.cuda.current_stream(self.device).wait_stream(side)
            ready = following
        if ready is not None:
            yield _handed_over(ready, self.device)

    def _batch(self, request: Request, pieces: list[Samples]) -> ImageBatch:
        inputs = self._normalize([piece.images for piece in pieces])
        labels = [piece.labels for piece in pieces]
        targets = labels[0] if len(labels) == 1 else torch.cat(labels)
        targets = targets.to(self.device, non_blocking=True)
        size = (request.extent,) * 2 if request.extent else self._size
        if size is not None and tuple(inputs.shape[-2:]) != tuple(size) and len(inputs):
            inputs = torch.nn.functional.interpolate(
                inputs, list(size), mode="bilinear", antialias=True
            )
        ghosts = request.ghosts or (len(request.indices),)
        indices, positions, kept = request.indices, request.positions, ghosts
        if any(piece.failures for piece in pieces):
            readable = self._readable(request, pieces)
            indices, positions = indices[readable], positions[readable]
            ends = np.cumsum(ghosts)[:-1]
            kept = tuple(int(part.sum()) for part in np.split(readable, ends))
        ghosts_left = tuple(size for size in kept if size)
        batch = ImageBatch(inputs, targets, indices, positions, ghosts_left)
        if self._train and (self._config.mixup > 0 or self._config.cutmix > 0) and len(batch):
            starts = np.cumsum((0, *ghosts[:-1]))
            firsts = [
                int(request.positions[start])
                for start, size in zip(starts, kept, strict=True)
                if size
            ]
            batch.inputs, batch.mixed = mix_batch(
                inputs,
                targets,
                batch.ghosts,
                firsts,
                self._seed,
                request.epoch,
                self._config.mixup,
                self._config.cutmix,
                self._config.mixup_layers,
            )
        return batch

    def _readable(self, request: Request, pieces: list[Samples]) -> np.ndarray:
        """Return which samples of the request were read: bool (n,); count the others."""
        readable = np.ones(len(request.indices), dtype=bool)
        start = 0
        for piece in pieces:
            for place, name, reason in piece.failures:
                self.skipped.add(name)
                root = self._config.root
                if root is not None and not Path(root).exists():
                    raise UserError(f"data.root={root!r} is gone: {reason}")
                if len(self.skipped) > self._config.skip_corrupt:
                    raise UserError(
                        f"unreadable image {reason}; data.skip_corrupt="
                        f"{self._config.skip_corrupt} allows no more"
                    )
                readable[start + place] = False
            start += len(piece.labels) + len(piece.failures)
        return readable


def _handed_over(batch: ImageBatch, device: torch.device) -> ImageBatch:
    """Tell the allocator that the current stream uses what the side stream made."""
    current = torch.cuda.current_stream(device)
    for tensor in batch.tensors():
        tensor.record_stream(current)
    return batch
