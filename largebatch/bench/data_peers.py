"""Other loaders for `largebatch bench data`, each set up as in its own guide.

Every peer draws RandomResizedCrop(224) and a flip from the same files, in endless random order, and
hands over batches of `BATCH` images. A peer's function returns the batches, or raises ImportError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch

from largebatch.data.decode import Photograph, random_box
from largebatch.data.draws import SampleDraws, Stream

BATCH = 64
SIZE = 224
Batches = AbstractContextManager[Iterator[Any]]
Peer = Callable[[list[str], int], Batches]


class _Files(torch.utils.data.Dataset[Any]):
    """torchvision's ImageFolder, less its folders: the same loader and transforms per file."""

    def __init__(self, paths: list[str]) -> None:
        from torchvision import transforms
        from torchvision.datasets.folder import default_loader

        self.paths, self.load = paths, default_loader
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(SIZE),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.load(self.paths[index])), 0


@contextmanager
def torchvision_loader(paths: list[str], workers: int) -> Iterator[Iterator[Any]]:
    """ImageFolder's loading with Pillow and the standard transforms, in a DataLoader: float32."""
    from torch.utils.data import DataLoader, RandomSampler

    files = _Files(paths)
    sampler = RandomSampler(files, replacement=True, num_samples=1 << 30)
    loader = DataLoader(files, BATCH, sampler=sampler, num_workers=workers)
    batches: Any = iter(loader)
    try:
        yield batches
    finally:
        batches._shutdown_workers()


@contextmanager
def dali_loader(paths: list[str], workers: int) -> Iterator[Iterator[Any]]:
    """DALI on the CPU: the crop fused with the decoding, resize and flip in its threads: uint8."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(  # type: ignore[untyped-decorator, unused-ignore]
        batch_size=BATCH, num_threads=workers, device_id=None, prefetch_queue_depth=2
    )
    def graph() -> Any:
        data, _ = fn.readers.file(
            files=paths, labels=[0] * len(paths), random_shuffle=True, name="files"
        )
        images = fn.decoders.image_random_crop(
            data, random_aspect_ratio=[3 / 4, 4 / 3], random_area=[0.08, 1.0], num_attempts=10
        )
        images = fn.resize(images, size=SIZE, interp_type=types.INTERP_TRIANGULAR, antialias=True)
        return fn.flip(images, horizontal=fn.random.coin_flip())

    pipeline = graph()
    pipeline.build()
    yield iter(pipeline.run, None)


@contextmanager
def spdl_loader(paths: list[str], workers: int) -> Iterator[Iterator[Any]]:
    """SPDL: FFmpeg decodes, crops and scales in threads of one process: uint8."""
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    try:
        spdl.io.demux_image(paths[0])
    except RuntimeError as error:  # its package loads FFmpeg's libraries on first use
        raise ImportError(str(error).partition(",")[0]) from None
    sizes = []
    for path in paths:
        with open(path, "rb") as file:
            image = Photograph(file.read())
        sizes.append((image.height, image.width))

    def source() -> Iterator[int]:
        random = np.random.default_rng(0)
        while True:
            yield int(random.integers(1 << 62))

    def decode(number: int) -> Any:
        place = number % len(paths)
        top, left, height, width = random_box(SampleDraws(0, 0, number, Stream.CROP), *sizes[place])
        filters = f"crop={width}:{height}:{left}:{top}:exact=1,scale={SIZE}:{SIZE}:flags=bilinear"
        if number >> 61:
            filters += ",hflip"
        packets = spdl.io.demux_image(paths[place])
        return spdl.io.decode_packets(packets, filter_desc=f"{filters},format=pix_fmts=rgb24")

    def convert(frames: list[Any]) -> Any:
        return spdl.io.to_numpy(spdl.io.convert_frames(frames))

    builder = PipelineBuilder().add_source(source()).pipe(decode, concurrency=workers)
    pipeline = (
        builder.aggregate(BATCH)
        .pipe(convert)
        .add_sink(2)
        .build(num_threads=workers, max_failures=0)
    )
    with pipeline.auto_stop():
        yield iter(pipeline)


PEERS: dict[str, Peer] = {
    "torchvision": torchvision_loader,
    "dali": dali_loader,
    "spdl": spdl_loader,
}
