"""DALI's pipeline beside torchvision's: same order, windows and flips, nearly the same pixels."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from largebatch._errors import UserError
from largebatch.data import Batch, DataConfig, EpochOrder, Pipeline, Request, build_source, decode
from largebatch.data.dali import DaliReader, require_dali
from largebatch.data.draws import SampleDraws, Stream
from largebatch.data.imagefolder import FileSource

Ask = Callable[..., Request]
ABSENT = importlib.util.find_spec("nvidia") is None or not importlib.util.find_spec("nvidia.dali")
pytestmark = pytest.mark.timeout(120)
needs_dali = pytest.mark.skipif(ABSENT, reason="DALI is not installed")
SEED = 1
# The same bits are decoded; resizing rounds otherwise, and where torchvision's pipeline decodes at
# a fraction (views twice as large as needed) it filters otherwise.
MEAN_DIFFERENCE, MEAN_AT_A_FRACTION = 0.5, 2.5


def test_its_absence_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nvidia.dali", None)
    with pytest.raises(UserError, match=r"data.pipeline='dali'.*pip install 'largebatch\[dali\]'"):
        require_dali()
    config = DataConfig(name="imagefolder", root=str(folder), pipeline="dali")
    with pytest.raises(UserError, match=r"data.pipeline='dali'"):
        Pipeline(build_source(config, "train"), config, SEED)


def files(root: Path, split: str = "train", **keys: object) -> tuple[FileSource, DataConfig]:
    config = DataConfig(name="imagefolder", root=str(root), **keys)  # type: ignore
    source = build_source(config, split)  # type: ignore[arg-type]
    assert isinstance(source, FileSource)
    return source, config


def uint8(batch: Batch, source: FileSource) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (source.mean, source.std))
    return ((batch.inputs * std + mean) * 255).round()


def read(
    source: FileSource, config: DataConfig, pipeline: str, requests: list[Request], **options: bool
) -> list[Batch]:
    # Workers forked from a process with DALI's threads may inherit a lock that one of them held.
    workers = 2 if pipeline == "dali" else 0
    chosen = DataConfig(**{**vars(config), "pipeline": pipeline, "workers": workers})
    with Pipeline(source, chosen, SEED, **options) as opened:  # type: ignore[arg-type]
        return list(opened.read(requests))


def cut(n: int, size: int, epoch: int, rank: int = 0, world: int = 1) -> list[Request]:
    """Cut an epoch into steps of ``size``, the last short, and take a rank's share of each."""
    order = EpochOrder(n, SEED)
    return [
        Request(
            epoch,
            np.array_split(order.indices(epoch, start, min(start + size, n)), world)[rank],
            np.array_split(np.arange(start, min(start + size, n)), world)[rank],
        )
        for start in range(0, n, size)
    ]


@needs_dali
@pytest.mark.parametrize("train", [True, False])
def test_same_samples_windows_and_flips_as_torchvision(folder: Path, train: bool) -> None:
    source, config = files(folder, image_size=32)
    requests = [request for epoch in (0, 1) for request in cut(14, 4, epoch)]
    assert len(requests[-1].indices) == 2  # a last partial batch
    ours, reference = (
        read(source, config, name, requests, train=train) for name in ("dali", "torchvision")
    )
    assert [b.indices.tolist() for b in ours] == [b.indices.tolist() for b in reference]
    assert all(torch.equal(a.targets, b.targets) for a, b in zip(ours, reference, strict=True))
    flips = 0
    for request, a, b in zip(requests, ours, reference, strict=True):
        difference = (uint8(a, source) - uint8(b, source)).abs()
        for place, index in enumerate(request.indices.tolist()):
            image = decode.Photograph(Path(source.path(index)).read_bytes())
            view = source.view(image, index, request.epoch, SEED, 32, train)
            flips += view.flip
            allowed = MEAN_AT_A_FRACTION if view.factor > 1 else MEAN_DIFFERENCE
            assert difference[place].mean() < allowed, (index, view)
            # Another flip, or a window one pixel away, is farther than that.
            mirrored = (uint8(a, source)[place].flip(-1) - uint8(b, source)[place]).abs().mean()
            assert mirrored > 2 * allowed
    assert 6 < flips < 22 if train else flips == 0


@needs_dali
def test_windows_match_to_the_pixel(tmp_path: Path) -> None:
    """Every pixel of the image tells its own place: a window shifted by one would show."""
    rows, columns = np.mgrid[0:60, 0:80]
    place = tmp_path / "train" / "a"
    place.mkdir(parents=True)
    (tmp_path / "val" / "a").mkdir(parents=True)
    image = np.stack([4 * rows, 3 * columns, 0 * rows], -1).astype(np.uint8)
    for number in range(40):
        Image.fromarray(image).save(place / f"{number:02d}.png")
    source, config = files(tmp_path, image_size=16)
    (batch,) = read(source, config, "dali", [Request(3, np.arange(40), np.arange(40))])
    pixels = uint8(batch, source)
    for index in range(40):
        draws = (SampleDraws(SEED, 3, index, s) for s in (Stream.CROP, Stream.FLIP))
        top, left, height, width = (view := decode.training_view(60, 80, 16, *draws)).box
        # The mean of a linear ramp over a window is its value at the window's centre.
        assert abs(float(pixels[index, 0].mean()) / 4 - (top + (height - 1) / 2)) < 0.2
        assert abs(float(pixels[index, 1].mean()) / 3 - (left + (width - 1) / 2)) < 0.2
        assert (pixels[index, 1, 8, 0] > pixels[index, 1, 8, 15]) == view.flip


@needs_dali
def test_batches_ranks_and_resumption_change_no_bit(folder: Path) -> None:
    source, config = files(folder, image_size=24)
    whole: dict[int, torch.Tensor] = {}
    for batch in read(source, config, "dali", cut(14, 14, 5)):
        whole.update(zip(batch.indices.tolist(), batch.inputs, strict=True))
    assert sorted(whole) == list(range(14))
    for world in (1, 2, 3):
        seen: list[int] = []
        for rank in range(world):
            for batch in read(source, config, "dali", cut(14, 4, 5, rank, world)):
                seen += batch.indices.tolist()
                for index, pixels in zip(batch.indices.tolist(), batch.inputs, strict=True):
                    assert torch.equal(pixels, whole[index])
        assert sorted(seen) == list(range(14))
    # Begun anew in the middle of the epoch: the rest, to the bit, and then the next epoch.
    requests = cut(14, 4, 5) + cut(14, 4, 6)
    through = read(source, config, "dali", requests)
    resumed = read(source, config, "dali", requests[2:])
    for a, b in zip(through[2:], resumed, strict=True):
        assert a.indices.tolist() == b.indices.tolist()
        assert torch.equal(a.inputs, b.inputs)


@needs_dali
def test_long_empty_and_resized_requests_keep_their_order(folder: Path, ask: Ask) -> None:
    source, config = files(folder, image_size=8)
    wanted = np.random.default_rng(0).integers(0, 14, 300)
    requests = [ask(wanted), ask([]), ask([3], extent=20), ask(wanted[::-1])]
    batches = read(source, config, "dali", requests)
    assert [len(batch) for batch in batches] == [300, 0, 1, 300]
    assert [batch.inputs.shape[-1] for batch in batches] == [8, 8, 20, 8]
    assert torch.equal(batches[0].inputs.flip(0), batches[3].inputs)


@needs_dali
def test_a_pipeline_left_in_the_middle_starts_afresh(folder: Path, ask: Ask) -> None:
    source, config = files(folder, image_size=8, pipeline="dali")
    with Pipeline(source, config, SEED) as pipeline:
        batches = pipeline.read(ask([k % 14]) for k in range(10**9))
        assert next(batches).indices.tolist() == [0]
        again = list(pipeline.read([ask([9, 2]), ask([5])]))
        assert [batch.indices.tolist() for batch in again] == [[9, 2], [5]]
        with pytest.raises(ZeroDivisionError):  # a failure of the requests is passed on
            list(pipeline.read(ask([1 // (2 - k)]) for k in range(9)))
        assert len(list(pipeline.read([ask([9, 2]), ask([5])]))) == 2
        reader = pipeline._pieces
        assert isinstance(reader, DaliReader)
        thread = reader._thread
    assert thread is not None
    assert not thread.is_alive()


@needs_dali
def test_damaged_files_are_named_or_left_out(folder: Path, ask: Ask) -> None:
    cut_short = folder / "train" / "bee" / "02.jpg"
    cut_short.write_bytes(cut_short.read_bytes()[:400])
    source, config = files(folder, image_size=16)
    with pytest.raises(UserError, match=r"bee/02.jpg: .*skip_corrupt=0"):
        read(source, config, "dali", [ask(range(14))])
    config.skip_corrupt = 1
    found = [
        read(source, config, name, [ask(range(14), ghosts=(9, 1, 4))])[0]
        for name in ("dali", "torchvision")
    ]
    assert found[0].indices.tolist() == found[1].indices.tolist() == [*range(9), *range(10, 14)]
    assert found[0].ghosts == found[1].ghosts == (9, 4)
    assert torch.equal(found[0].targets, found[1].targets)


@needs_dali
def test_what_dali_gives_up_on_is_decoded_here(
    folder: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file whole by its ends that DALI cannot read: the verdict of the other decoders counts."""
    source, config = files(folder, image_size=16)
    expected = read(source, config, "dali", [ask([k]) for k in range(14)])
    built: list[object] = []
    build = DaliReader._build
    monkeypatch.setattr(DaliReader, "_build", lambda self: built.append(0) or build(self))
    path = Path(source.path(5))
    data = path.read_bytes()
    at = data.index(b"\xff\xc4") + 4  # its first table of Huffman codes
    path.write_bytes(data[:at] + b"\xff" * 30 + data[at + 30 :])
    config.skip_corrupt = 1
    batches = read(source, config, "dali", [ask([k]) for k in range(14)])
    assert len(built) == 2  # a graph that has failed is made anew
    assert [len(batch) for batch in batches] == [0 if k == 5 else 1 for k in range(14)]
    for k in {*range(14)} - {5}:
        difference = (uint8(batches[k], source) - uint8(expected[k], source)).abs()
        assert difference.max() <= 1


@needs_dali
def test_other_formats_look_the_same_to_both(tmp_path: Path, ask: Ask) -> None:
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
    grey = Image.fromarray(np.tile(np.arange(0, 240, 5, dtype=np.uint8), (40, 1)))
    turned = grey.convert("RGB").getexif()
    turned[0x0112] = 6  # to be shown turned by a quarter; no decoder here heeds it
    for name, image in {
        "grey.jpg": grey,
        "palette.png": grey.convert("P"),
        "alpha.png": grey.convert("RGBA"),
        "cmyk.jpg": grey.convert("CMYK"),
    }.items():
        image.save(tmp_path / "train" / "a" / name)
    grey.convert("RGB").save(tmp_path / "train" / "a" / "turned.jpg", exif=turned)
    source, config = files(tmp_path, image_size=24)
    for train in (True, False):
        ours, reference = (
            read(source, config, name, [ask(range(5))], train=train)[0]
            for name in ("dali", "torchvision")
        )
        assert (uint8(ours, source) - uint8(reference, source)).abs().max() <= 3
