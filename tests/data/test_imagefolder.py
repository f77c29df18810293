"""Image folders: layout, mistakes, damaged files, and pixels that match Pillow's."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional

from largebatch._errors import UserError
from largebatch.data import Batch, DataConfig, Pipeline, Request, build_source, decode
from largebatch.data.check import check_images, report_images
from largebatch.data.draws import SampleDraws, Stream
from largebatch.data.imagefolder import FileSource
from largebatch.data.source import Split

Read = Callable[..., list[Batch]]
Ask = Callable[..., Request]


def build(root: Path, split: Split = "train", **keys: object) -> tuple[FileSource, DataConfig]:
    config = DataConfig(name="imagefolder", root=str(root), **keys)  # type: ignore[arg-type]
    source = build_source(config, split)
    assert isinstance(source, FileSource)
    return source, config


def test_classes_are_the_folders_in_sorted_order(folder: Path) -> None:
    (folder / "train" / "bee" / "notes.txt").write_text("not an image")
    source, _ = build(folder, image_size=32)
    assert (len(source), source.num_classes, source.image_shape) == (14, 2, (3, 32, 32))
    names = [Path(source.path(index)).parts[-2:] for index in range(14)]
    assert names == [(c, f"{n:02d}.jpg") for c in ("ant", "bee") for n in range(7)]
    assert [source.load(index, 0, 0, 8, False)[1] for index in range(14)] == [0] * 7 + [1] * 7
    assert len(build(folder, limit=3)[0]) == 3


def test_mistakes_in_the_layout_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / "val" / "cow").mkdir()
    shutil.rmtree(folder / "val" / "ant")
    with pytest.raises(UserError, match=r"only in train: ant; only in val: cow"):
        build(folder)
    shutil.rmtree(folder / "val")
    with pytest.raises(UserError, match=r"data.root=.*: val: No such file or directory; expected"):
        build(folder)
    (folder / "val").mkdir()
    with pytest.raises(UserError, match=r"no class folder in val"):
        build(folder)
    for name in ("ant", "bee"):
        (folder / "val" / name).mkdir()
    build(folder)
    with pytest.raises(UserError, match=r"no image in val"):
        build(folder, "val")


@pytest.mark.parametrize("decoder", ["fastest", "simplejpeg", "pillow"])
def test_views_match_the_pillow_pipeline(
    folder: Path, monkeypatch: pytest.MonkeyPatch, decoder: str
) -> None:
    """The reference crops and resizes with Pillow, as torchvision's standard transforms do."""
    if decoder != "fastest":
        monkeypatch.setattr(decode, "decode_region", lambda data, box: None)
    if decoder == "pillow":
        monkeypatch.setattr(decode, "simplejpeg", None)
    source, _ = build(folder)
    for index in range(14):
        with Image.open(source.path(index)) as opened:
            image = opened.convert("RGB")
        crop = SampleDraws(3, 1, index, Stream.CROP)
        box = decode.random_box(crop, image.height, image.width)
        # Decoded at half its size, on the grid of that size.
        factor = 2 if min(box[2:]) >= 64 else 1
        top, left, height, width = (edge // factor * factor for edge in box)
        reference = functional.resized_crop(image, top, left, height, width, [32, 32])
        flipped = SampleDraws(3, 1, index, Stream.FLIP).uniform() < 0.5
        if flipped:
            reference = functional.hflip(reference)
        view, _ = source.load(index, 1, 3, 32, True)
        difference = (view.float() - functional.pil_to_tensor(reference).float()).abs()
        assert difference.mean() < (2.0 if factor > 1 else 0.1), index
        assert difference.max() <= (20 if factor > 1 else 1), index
        reference = functional.center_crop(functional.resize(image, 37), [32, 32])
        view, _ = source.load(index, 1, 3, 32, False)
        difference = (view.float() - functional.pil_to_tensor(reference).float()).abs()
        assert difference.max() <= 1


def test_decoders_give_the_same_bits_at_every_scale(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the decoders are installed: each in turn is taken away."""
    source, _ = build(folder)

    def views() -> torch.Tensor:
        return torch.cat(
            [
                source.load(index, 0, 0, size, train)[0].flatten()
                for index in range(14)
                for size in (8, 16, 24, 80)
                for train in (True, False)
            ]
        )

    found = [views()]
    monkeypatch.setattr(decode, "decode_region", lambda data, box: None)
    found.append(views())
    monkeypatch.setattr(decode, "simplejpeg", None)
    found.append(views())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[1], found[2])


def test_a_file_cut_below_the_box_is_unreadable_all_the_same(folder: Path) -> None:
    data = (folder / "train" / "ant" / "06.jpg").read_bytes()
    box = (0, 0, 8, 8)
    assert decode.Photograph(data).pixels(box).shape == (8, 8, 3)
    for kept in (len(data) - 2, len(data) // 2, 200):
        with pytest.raises((OSError, ValueError)):
            decode.Photograph(data[:kept]).pixels(box)


def test_what_the_fast_decoder_only_warns_of_is_left_to_pillow(folder: Path) -> None:
    data = (folder / "train" / "ant" / "00.jpg").read_bytes()
    box = (10, 20, 30, 40)
    # Stray bytes before a marker, as some photographs of ImageNet have them.
    at = data.index(b"\xff\xdb")
    stray = data[:at] + b"\0\0\0" + data[at:]
    with Image.open(io.BytesIO(stray)) as opened:
        expected = np.asarray(opened.convert("RGB"))[10:40, 20:60]
    assert np.array_equal(decode.Photograph(stray).pixels(box), expected)


def test_decoding_at_a_fraction_keeps_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large photograph is decoded at a fraction; the result stays near the full decode's."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    image = small.resize((1201, 903), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    photograph = decode.Photograph(buffer.getvalue())
    box = (104, 48, 704, 1000)
    full = decode._resize(photograph.pixels(box), 80, 100)
    for factor, shape in ((2, (352, 500, 3)), (4, (176, 250, 3)), (8, (88, 125, 3))):
        pixels = photograph.pixels(box, factor)
        assert pixels.shape == shape
        difference = (decode._resize(pixels, 80, 100).float() - full.float()).abs()
        assert difference.mean() < 2
    # A view takes the smallest fraction that still has as many pixels as it needs.
    asked: list[tuple[int, int]] = []
    pixels_of = decode.Photograph.pixels

    def spy(self: decode.Photograph, box: decode.Box, factor: int = 1) -> np.ndarray:
        asked.append((factor, min(box[2:])))
        return pixels_of(self, box, factor)

    monkeypatch.setattr(decode.Photograph, "pixels", spy)
    for index in range(60):
        draws = (SampleDraws(0, 0, index, stream) for stream in (Stream.CROP, Stream.FLIP))
        view = decode.training_view(photograph.height, photograph.width, 100, *draws)
        assert photograph.show(view).shape == (3, 100, 100)
    assert {factor for factor, _ in asked} >= {2, 4}
    assert all(factor * 100 <= side < 2 * factor * 100 for factor, side in asked)
    asked.clear()
    photograph.show(decode.evaluation_view(photograph.height, photograph.width, 60))
    assert asked == [(1, 903)]


def test_grey_palette_and_cmyk_files_become_rgb(tmp_path: Path) -> None:
    grey = Image.fromarray(np.tile(np.arange(0, 240, 5, dtype=np.uint8), (40, 1)))
    for name, image in {
        "grey.jpg": grey,
        "grey.png": grey,
        "palette.png": grey.convert("P"),
        "alpha.png": grey.convert("RGBA"),
        "cmyk.jpg": grey.convert("CMYK"),
    }.items():
        buffer = io.BytesIO()
        image.save(buffer, "JPEG" if name.endswith("jpg") else "PNG")
        photograph = decode.Photograph(buffer.getvalue())
        view = photograph.show(decode.evaluation_view(photograph.height, photograph.width, 16))
        assert view.shape == (3, 16, 16), name
        assert view.dtype == torch.uint8
        spread = view.float().amax(0) - view.float().amin(0)
        assert spread.max() <= 4, name
        assert view[0, :, 0].float().mean() < view[0, :, -1].float().mean() - 50, name


def test_random_boxes_have_the_published_areas_and_ratios() -> None:
    height, width = 375, 500
    boxes = np.array(
        [decode.random_box(SampleDraws(0, 0, i, Stream.CROP), height, width) for i in range(4000)]
    )
    top, left, box_height, box_width = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + box_height <= height).all()
    assert (left + box_width <= width).all()
    area = box_height * box_width / (height * width)
    ratio = box_width / box_height
    assert 0.075 < area.min() < 0.1
    assert 0.9 < area.max() <= 1
    assert 0.74 < ratio.min() < 0.78
    assert 1.28 < ratio.max() < 1.35
    # Large areas are rejected more often, at tall ratios above all: below the mean of (0.08, 1).
    assert 0.41 < area.mean() < 0.45
    # No box of the allowed ratios fits a strip ten times: its middle is taken.
    strip = decode.random_box(SampleDraws(0, 0, 0, Stream.CROP), 10, 1000)
    assert strip == (0, 493, 10, 13)


def test_an_unreadable_image_ends_the_run_by_name(folder: Path, read: Read, ask: Ask) -> None:
    path = folder / "train" / "bee" / "02.jpg"
    path.write_bytes(path.read_bytes()[:400])
    source, config = build(folder, image_size=16)
    for workers in (0, 1):
        config.workers = workers
        with pytest.raises(UserError, match=r"bee/02.jpg: .*skip_corrupt=0") as caught:
            read(source, config, [ask(range(14))])
        assert "\n" not in str(caught.value)
        assert "Traceback" not in str(caught.value)


def test_a_folder_that_vanishes_is_named(folder: Path, read: Read, ask: Ask) -> None:
    source, config = build(folder, image_size=16, workers=0, skip_corrupt=100)
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(UserError, match=f"data.root='{folder}' is gone: {folder}"):
        read(source, config, [ask(range(4))])


def test_skip_corrupt_leaves_out_as_many_as_it_allows(folder: Path, ask: Ask) -> None:
    for name in ("bee/02.jpg", "ant/06.jpg"):
        (folder / "train" / name).write_bytes(b"\xff\xd8\xff broken")
    (folder / "train" / "ant" / "05.jpg").unlink()
    (folder / "train" / "ant" / "05.jpg").mkdir()  # a folder is not read as an image
    source, config = build(folder, image_size=16, skip_corrupt=2, workers=0, augment="none")
    assert len(source) == 13
    with Pipeline(source, config, 0) as pipeline:
        for epoch in range(2):  # the same two again: not counted twice
            first, second = pipeline.read(
                [ask(range(8), epoch, ghosts=(5, 1, 2)), ask(range(8, 13), epoch)]
            )
            assert first.indices.tolist() == [0, 1, 2, 3, 4, 6, 7]
            assert first.ghosts == (5, 2)
            assert first.inputs.shape == (7, 3, 16, 16)
            assert first.targets.tolist() == [0] * 5 + [1] * 2
            assert second.indices.tolist() == [9, 10, 11, 12]
            assert second.ghosts == (4,)
        assert {Path(name).name for name in pipeline.skipped} == {"02.jpg", "06.jpg"}
        whole, _ = build(folder, image_size=16)
        assert torch.equal(
            first.inputs[:2], next(Pipeline(whole, config, 0).read([ask([0, 1])])).inputs
        )
        config.skip_corrupt = 1
        fresh = Pipeline(source, config, 0)
        with pytest.raises(UserError, match=r"skip_corrupt=1 allows no more"):
            list(fresh.read([ask(range(13))]))


def test_check_names_every_damaged_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report_images(folder) == 0
    assert "20 images checked, 0 unreadable" in capsys.readouterr().out
    whole = (folder / "val" / "ant" / "01.jpg").read_bytes()
    (folder / "val" / "ant" / "01.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "train" / "bee" / "00.jpg").write_bytes(b"")
    calls: list[tuple[int, int]] = []
    found = list(check_images(folder, lambda done, count: calls.append((done, count))))
    assert [path for path, _ in found] == sorted(path for path, _ in found)
    bad = [Path(path).relative_to(folder).as_posix() for path, reason in found if reason]
    assert bad == ["train/bee/00.jpg", "val/ant/01.jpg"]
    assert calls == [(number, 20) for number in range(1, 21)]
    assert report_images(folder) == 1
    assert "20 images checked, 2 unreadable" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"no such folder"):
        list(check_images(folder / "absent"))
