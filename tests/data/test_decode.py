"""Pixels of every kind of file: the right values or a refusal, and no image that fills memory."""

from __future__ import annotations

import io
import os
import resource
import struct
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from largebatch._errors import UserError
from largebatch.data import Batch, DataConfig, Request, build_source, decode
from largebatch.data.check import check_images, report_images
from largebatch.data.decode import Photograph

Read = Callable[..., list[Batch]]
Ask = Callable[..., Request]
RAMP = np.linspace(300, 60000, 400).reshape(20, 20).astype(np.uint16)
BYTES = np.arange(400, dtype=np.uint32).reshape(20, 20).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> NDArray[np.uint8]:
    photograph = Photograph(data)
    found = photograph.pixels((0, 0, photograph.height, photograph.width))
    assert found.dtype == np.uint8
    return found


def tiff(array: NDArray[Any], sample_format: int = 1, photometric: int = 1, **tags: int) -> bytes:
    """Write an uncompressed grey TIFF by hand: Pillow writes few of the kinds it reads."""
    order = ">" if array.dtype.byteorder == ">" else "<"
    body, bits = array.tobytes(), array.dtype.itemsize * 8
    if "bits" in tags:
        bits = tags["bits"]
    values = {256: array.shape[1], 257: array.shape[0], 258: bits, 259: 1, 262: photometric,
              273: 8, 274: tags.get("orientation", 1), 277: 1, 278: array.shape[0],
              279: len(body), 339: sample_format}  # fmt: skip
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in
                       sorted(values.items()))  # fmt: skip
    head = (b"MM" if order == ">" else b"II") + struct.pack(order + "HI", 42, 8 + len(body))
    return head + body + struct.pack(order + "H", len(values)) + entries + bytes(4)


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)


def pgm(array: NDArray[np.uint16], most: int) -> bytes:
    return b"P5 %d %d %d\n" % (*array.shape[::-1], most) + array.astype(">u2").tobytes()


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.fromarray(RAMP), "PNG"),
        encoded(Image.fromarray(RAMP), "TIFF"),
        tiff(RAMP.astype(">u2")),
        tiff(65535 - RAMP, photometric=0),
        pgm(RAMP, 65535),
    ],
    ids=["png", "tiff", "tiff-big-endian", "tiff-inverted", "pgm"],
)
def test_sixteen_bits_of_grey_keep_the_upper_eight(data: bytes) -> None:
    found = pixels(data)
    expected = (RAMP >> 8).astype(np.uint8)
    assert np.array_equal(found, np.stack([expected] * 3, -1))


def test_other_depths_are_spread_over_the_range() -> None:
    few = (RAMP >> 12).astype(np.uint8)  # 0 to 14 of 15
    found = pixels(b"P5 20 20 15\n" + few.tobytes())
    assert np.array_equal(found[..., 0], few * 17)
    twelve = pixels(pgm((RAMP >> 4).astype(np.uint16), 4095))[..., 0].astype(int)
    assert np.abs(twelve - (RAMP >> 8)).max() <= 1
    packed = np.zeros((20, 30), dtype=np.uint8)
    first, second = (RAMP >> 4)[:, ::2], (RAMP >> 4)[:, 1::2]
    packed[:, ::3], packed[:, 1::3] = first >> 4, (first & 15) << 4 | second >> 8
    packed[:, 2::3] = second & 255
    file = bytearray(tiff(packed, bits=12))
    at = file.index(struct.pack("<HHII", 256, 4, 1, 30))
    file[at : at + 12] = struct.pack("<HHII", 256, 4, 1, 20)
    assert np.array_equal(pixels(bytes(file))[..., 0], (RAMP >> 8).astype(np.uint8))


FLOAT = RAMP.astype(np.float32) / 65535


@pytest.mark.parametrize(
    ("data", "mode"),
    [
        (encoded(Image.fromarray(FLOAT), "TIFF"), "F"),
        (encoded(Image.fromarray(RAMP.astype(np.int32)), "TIFF"), "I"),
        (tiff(RAMP.astype(np.uint32)), "I"),
        (tiff(RAMP.astype(np.int16), sample_format=2), "I"),
        (tiff(BYTES.astype(np.int8), sample_format=2), "L"),
        (b"Pf\n20 20\n-1.0\n" + FLOAT.tobytes(), "F"),
    ],
    ids=["float", "int32", "uint32", "int16", "int8", "pfm"],
)
def test_pixels_without_an_agreed_range_are_refused_by_name(data: bytes, mode: str) -> None:
    with pytest.raises(ValueError, match=rf"mode {mode}\) have no agreed range; save .* 8 or 16"):
        pixels(data)


def colours() -> Image.Image:
    return Image.fromarray(np.stack([BYTES, BYTES[::-1], 255 - BYTES], -1))


def with_alpha(image: Image.Image) -> Image.Image:
    image.putalpha(Image.fromarray(BYTES.T.copy()))
    return image


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.filterwarnings("error")
def test_alpha_is_left_out_and_palettes_are_looked_up(kind: str) -> None:
    grey = Image.fromarray(BYTES)
    grey_values = np.stack([BYTES] * 3, -1)
    palette = colours().quantize(200)
    looked_up = np.asarray(palette.convert("RGB"))
    for image, expected, options in (
        (grey, grey_values, {}),
        (grey.point(lambda value: 255 * (value > 99), "1"), 255 * (grey_values > 99), {}),
        (with_alpha(grey.convert("LA")), grey_values, {}),
        (with_alpha(colours().convert("RGBA")), np.asarray(colours()), {}),
        (palette, looked_up, {}),
        (palette, looked_up, {"transparency": bytes(range(200))}),
        (palette, looked_up, {"transparency": 7}),
        (grey, grey_values, {"transparency": 7}),
        (colours(), np.asarray(colours()), {"transparency": (0, 19, 255)}),
    ):
        found = pixels(encoded(image, kind, **(options if kind == "PNG" else {})))
        assert np.array_equal(found, expected), (image.mode, options)


def test_kinds_that_only_tiff_has() -> None:
    cmyk = Image.new("CMYK", (4, 4), (255, 0, 0, 0))
    assert (pixels(encoded(cmyk, "TIFF")) == (0, 255, 255)).all()
    palette = colours().quantize(200)
    expected = np.asarray(palette.convert("RGB"))
    assert np.array_equal(pixels(encoded(with_alpha(palette.convert("PA")), "TIFF")), expected)
    turned = pixels(tiff(BYTES[:, :10].copy(), orientation=6))
    assert turned.shape == (10, 20, 3)  # Pillow turns these as it reads, and knows so beforehand
    inverted = pixels(tiff(255 - BYTES, photometric=0))
    assert np.array_equal(inverted[..., 0], BYTES)
    deep = np.stack([RAMP, RAMP[::-1], 65535 - RAMP], -1)
    rows = b"".join(png_row(row) for row in deep)
    header = struct.pack(">IIBBBBB", 20, 20, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)
    png += png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    assert np.array_equal(pixels(png), (deep >> 8).astype(np.uint8))


def png_row(row: NDArray[np.uint16]) -> bytes:
    return b"\0" + row.astype(">u2").tobytes()


# One oversized or thin image


@pytest.fixture
def bombs(folder: Path) -> Path:
    """The folder with an image of too many pixels in each format, beside good ones."""
    place = folder / "train" / "ant"
    small = encoded(Image.new("L", (16, 16)), "JPEG")
    at = small.index(b"\xff\xc0") + 5
    (place / "bomb.jpg").write_bytes(
        small[:at] + struct.pack(">HH", 30000, 30000) + small[at + 4 :]
    )
    (place / "bomb.png").write_bytes(png_header(15000, 15000) + png_chunk(b"IEND", b""))
    (place / "bomb.ppm").write_bytes(b"P6 20000 20000 255\n" + bytes(100))
    (place / "bomb.bmp").write_bytes(
        b"BM" + struct.pack("<IHHI", 54, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, 20000, 20000, 1, 24, 0, 0, 0, 0, 0, 0)
    )  # fmt: skip
    os.mkfifo(place / "pipe.jpg")
    (place / "zero.jpg").symlink_to("/dev/zero")
    with (place / "sparse.jpg").open("wb") as file:
        file.truncate(1 << 40)
    return folder


BOMBS = ["bomb.bmp", "bomb.jpg", "bomb.png", "bomb.ppm", "pipe.jpg", "sparse.jpg", "zero.jpg"]


def test_a_jpeg_claims_no_more_pixels_than_its_bytes_can_hold() -> None:
    """The emptiest JPEGs hold fewer than 512 pixels a byte; a header that lies claims more."""
    for mode, options in (("L", {"progressive": True}), ("RGB", {"subsampling": 2}), ("L", {})):
        data = encoded(Image.new(mode, (2000, 1500)), "JPEG", optimize=True, **options)
        assert 100 < 2000 * 1500 / len(data) < 512
        assert pixels(data).shape == (1500, 2000, 3)
        at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) + 5
        lying = data[:at] + struct.pack(">HH", 12000, 12000) + data[at + 4 :]
        with pytest.raises(ValueError, match=r"12000 x 12000 pixels are more than \d+ bytes"):
            Photograph(lying)


def test_files_that_would_fill_memory_or_never_end_are_damaged(
    bombs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert report_images(bombs) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "27 images checked, 7 unreadable"
    assert [Path(line.split(": ")[0]).name for line in lines[:-1]] == BOMBS
    reasons = "\n".join(lines)
    assert reasons.count("not a regular file") == 2
    assert "1099511627776 bytes are more than the 1073741824 allowed" in reasons
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("workers", [0, 1])
def test_skip_corrupt_covers_them(
    bombs: Path, read: Read, ask: Ask, workers: int, train: bool
) -> None:
    config = DataConfig(
        name="imagefolder", root=str(bombs), image_size=16, workers=workers, skip_corrupt=7
    )
    source = build_source(config, "train")
    (batch,) = read(source, config, [ask(range(21))], train=train)
    assert len(batch) == 14
    config.skip_corrupt = 6
    with pytest.raises(UserError, match=r"unreadable image .*ant/\w+.\w+: .*skip_corrupt=6"):
        read(source, config, [ask(range(21))], train=train)


@pytest.mark.parametrize(
    ("width", "height"), [(60000, 1), (1, 60000), (9000, 3), (7, 8001), (5001, 300)]
)
def test_evaluation_resizes_no_more_of_a_strip_than_it_shows(width: int, height: int) -> None:
    ramp = np.tile(
        np.linspace(0, 255, max(width, height)).astype(np.uint8), (min(width, height), 1)
    )
    image = Photograph(encoded(Image.fromarray(ramp if width > height else ramp.T), "PNG"))
    view = decode.evaluation_view(height, width, 224)
    assert view.resized[0] * view.resized[1] < 17 * 256 * 256
    top, left, rows, columns = view.box
    assert abs((2 * top + rows) - height) == abs((2 * left + columns) - width) == 0
    found = image.show(view)
    assert found.shape == (3, 224, 224)
    # The middle of the whole, which is what the crop of the whole resized would show.
    assert abs(found.float().mean() - 127) <= 1


def test_ordinary_images_are_evaluated_as_ever() -> None:
    """A strip resized whole and one resized in the middle agree; up to 16 to 1 it is the whole."""
    assert decode.evaluation_view(100, 1600, 64).box == (0, 0, 100, 1600)
    assert decode.evaluation_view(500, 375, 224).resized == (341, 256)
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (2, 100, 3), dtype=np.uint8))
    strip = small.resize((1001, 20), Image.Resampling.BICUBIC)
    image = Photograph(encoded(strip, "PNG"))
    view = decode.evaluation_view(20, 1001, 32)
    assert view.box == (0, 341, 20, 319)
    resized = decode._resize(np.asarray(strip), *decode.evaluation_size(20, 1001, 32))
    left = round((resized.shape[-1] - 32) / 2)
    top = round((resized.shape[-2] - 32) / 2)
    whole = resized[:, top : top + 32, left : left + 32].float()
    difference = (image.show(view).float() - whole).abs()
    # Sizes are whole numbers, so the scales differ by a part in 600.
    assert difference.mean() < 2
    assert difference.max() <= 16


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_whatever_a_decoder_raises_is_one_kind_of_error(folder: Path) -> None:
    """Fuzzed headers: no other exception comes out than the one that all callers handle."""
    rng = np.random.default_rng(0)
    whole = [
        encoded(colours(), "PNG"),
        encoded(colours().quantize(9), "PNG", transparency=bytes(9)),
        encoded(colours(), "TIFF"),
        encoded(colours(), "TIFF", compression="tiff_lzw"),
        encoded(colours(), "WEBP"),
        encoded(colours(), "BMP"),
        encoded(colours(), "GIF"),
        encoded(colours(), "PPM"),
        encoded(colours(), "JPEG", progressive=True),
        tiff(RAMP),
    ]
    reasons: list[str] = []
    for data in whole:
        for _ in range(30):
            bad = np.frombuffer(data, np.uint8).copy()
            at = rng.integers(0, min(len(bad), 120), 4)
            bad[at] = rng.integers(0, 256, 4)
            image = bad.tobytes()[: int(rng.integers(len(bad) // 2, len(bad) + 1))]
            try:
                photograph = Photograph(image)
                if photograph.height * photograph.width < 1 << 22:
                    photograph.show(decode.evaluation_view(photograph.height, photograph.width, 16))
            except decode.UnreadableImage as error:
                reasons.append(str(error))
    assert len(reasons) > 100
    assert not [reason for reason in reasons if "\n" in reason or "0x" in reason or not reason]


def test_no_other_program_is_run_for_an_image(tmp_path: Path) -> None:
    """PostScript named .jpg: Pillow would hand it to Ghostscript."""
    place = tmp_path / "x.jpg"
    place.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    ((_, reason),) = check_images(tmp_path)
    assert reason == "cannot identify image file"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_that_no_terminal_can_show(
    folder: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    """Bytes that are no UTF-8, a line break, an escape: under a strict locale, and in ASCII."""
    place = os.fsencode(folder / "train" / "ant")
    for name in (b"caf\xe9.jpg", b"two\nlines.jpg", b"\x1b[31mred.jpg", "caf\u00e9.png".encode()):
        Path(os.fsdecode(place + b"/" + name)).write_bytes(b"no image")
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", stdout)
    assert report_images(folder) == 1
    stdout.seek(0)
    lines = stdout.read().splitlines()
    assert lines[-1] == "24 images checked, 4 unreadable"
    shown = {Path(line.split(": ")[0]).name for line in lines[:-1]}
    last = "caf\u00e9.png" if encoding == "utf-8" else r"caf\xe9.png"
    assert shown == {r"caf\udce9.jpg", r"two\nlines.jpg", r"\x1b[31mred.jpg", last}


def test_reading_a_file_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jpg")
    found: list[str | None] = []
    thread = threading.Thread(
        target=lambda: found.extend(reason for _, reason in check_images(tmp_path)), daemon=True
    )
    thread.start()
    thread.join(20)
    assert found == ["not a regular file"]
