"""Decode a photograph to uint8 pixels of the wanted size, as fast as the CPU allows.

Only the pixels inside the crop are resized, in uint8, with the same antialiased bilinear filter as
Pillow's. JPEGs are decoded by nvImageCodec or simplejpeg if installed, else by Pillow. All three
use libjpeg-turbo and give the same bits. A training view at least twice as large as needed is
decoded at a half, a quarter or an eighth of its size. This skips most of the inverse cosine
transform. Evaluation decodes in full.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from largebatch.data.colour import rgb
from largebatch.data.draws import SampleDraws
from largebatch.data.files import read_file
from largebatch.data.region import END, decode_region

try:
    import simplejpeg  # type: ignore[import-not-found, import-untyped, unused-ignore]
except ImportError:
    simplejpeg = None

Box = tuple[int, int, int, int]
_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# What files so named are known to hold (MPO counts as JPEG). Pillow knows more, PostScript among
# them, which it would have another program run.
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "GIF", "WEBP", "TIFF", "JPEG2000")
_MOST_PIXELS = 178_956_970  # Pillow's own limit
_MOST_BYTES = 1 << 30
# A JPEG spends a bit at least on a block of 64 pixels of each of its channels.
_JPEG, _MOST_A_BYTE = b"\xff\xd8", 512
_LONGEST = 16


def is_image(name: str) -> bool:
    """Return whether a file's name has an image's extension (torchvision's ImageFolder's list)."""
    return name.lower().endswith(_EXTENSIONS)


def random_box(draws: SampleDraws, height: int, width: int) -> Box:
    """Draw the box of RandomResizedCrop: (top, left, height, width).

    A box has a share of the area from 0.08 to 1 and an aspect ratio from 3/4 to 4/3 on a log scale.
    After ten boxes that do not fit, the largest centred box of the nearest allowed ratio is taken
    (Szegedy et al. 2015, arXiv:1409.4842, as torchvision implements it).
    """
    log_ratio = float(np.log(4 / 3))
    for _ in range(10):
        area = height * width * draws.uniform(0.08, 1.0)
        ratio = float(np.exp(draws.uniform(-log_ratio, log_ratio)))
        box_width, box_height = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < box_width <= width and 0 < box_height <= height:
            top = draws.integer(height - box_height + 1)
            left = draws.integer(width - box_width + 1)
            return top, left, box_height, box_width
    box_height, box_width = height, width
    if width / height < 3 / 4:
        box_height = max(1, round(width / (3 / 4)))
    elif width / height > 4 / 3:
        box_width = max(1, round(height * (4 / 3)))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def evaluation_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Return (height, width) of an image whose shorter side is resized to size * 256 / 224."""
    shorter = round(size * 256 / 224)
    if height <= width:
        return shorter, max(shorter, int(shorter * width / height))
    return max(shorter, int(shorter * height / width)), shorter


@dataclass(frozen=True)
class View:
    """The part of an image that a sample shows, and its size; the same for every pipeline.

    Attributes:
        box: (top, left, height, width) of the part, in pixels of the image.
        factor: 1, 2, 4 or 8: the image may be decoded at 1/factor of its size and the box still has
            enough pixels. The box lies on a grid of ``factor`` pixels.
        resized: (height, width) that the box is resized to.
        corner: (top, left) of the square taken from the resized box.
        size: side of the square.
        flip: whether the square is mirrored.
    """

    box: Box
    factor: int
    resized: tuple[int, int]
    corner: tuple[int, int]
    size: int
    flip: bool


def training_view(height: int, width: int, size: int, crop: SampleDraws, flip: SampleDraws) -> View:
    """Draw a random box of an image, resized to a square; half of the views are mirrored.

    Args:
        height, width: of the image, in pixels.
        size: side of the square, in pixels.
        crop: random draws for the box.
        flip: random draws for the mirroring.
    """
    box = random_box(crop, height, width)
    return box_view(box, size, flip.uniform() < 0.5)


def box_view(box: Iterable[int], size: int, flip: bool = False) -> View:
    """Return the view of a box resized to a square, with the smallest sufficient decoding size."""
    top, left, rows, columns = map(int, box)
    factor = 1
    while factor < 8 and min(rows, columns) >= 2 * factor * size:
        factor *= 2
    top, left, rows, columns = (edge // factor * factor for edge in (top, left, rows, columns))
    return View((top, left, rows, columns), factor, (size, size), (0, 0), size, flip)


def evaluation_view(height: int, width: int, size: int) -> View:
    """Resize the shorter side to size * 256 / 224 and take the square in the centre.

    If an image is more than 16 times as long as broad, only its middle of this length is resized.
    The rest would not be seen, and resizing all of a thin strip would fill the memory.
    """
    rows, columns = (_middle(side, _LONGEST * min(height, width)) for side in (height, width))
    resized = evaluation_size(rows, columns, size)
    corner = round((resized[0] - size) / 2), round((resized[1] - size) / 2)
    box = (height - rows) // 2, (width - columns) // 2, rows, columns
    return View(box, 1, resized, corner, size, False)


def _middle(side: int, most: int) -> int:
    """Return the length of a side's middle: at most ``most``, and as even or odd as the side."""
    return side if side <= most else most - (side - most) % 2


class UnreadableImage(ValueError):
    """A file that is not an image, is incomplete, or has pixels without an agreed range.

    All errors of decoders about a file become this error, with a one-line message.
    """


def is_decoding_error(error: BaseException) -> bool:
    """Return whether an error from a user's code is the fault of a file.

    These are errors for files that cannot be read or end early, and Pillow's errors for damaged
    files.
    """
    # Pillow's SyntaxError of a PNG names no file; that of the compiler does.
    of_pillow = type(error).__module__.startswith("PIL.") or (
        isinstance(error, SyntaxError) and error.filename is None
    )
    return of_pillow or isinstance(error, (UnreadableImage, OSError, EOFError))


class Photograph:
    """An encoded image whose size is known before its pixels are decoded.

    Attributes:
        data: the bytes of the file.
        height, width: in pixels.

    Raises:
        UnreadableImage: the bytes are not an image, or claim more than 178,956,970 pixels, or more
            pixels than they can hold.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._opened: Any = None
        self._measure()
        pixels = self.height * self.width
        if pixels > _MOST_PIXELS:
            raise UnreadableImage(f"{self._claim()} the {_MOST_PIXELS} allowed")
        if data.startswith(_JPEG) and pixels > _MOST_A_BYTE * len(data):
            raise UnreadableImage(f"{self._claim()} {len(data)} bytes of JPEG can hold")

    def _claim(self) -> str:
        return f"{self.width} x {self.height} pixels are more than"

    @classmethod
    def read(cls, path: Path | str) -> Photograph:
        """Read an image file.

        Raises:
            UnreadableImage: the file cannot be read, is not a regular file, is larger than 1 GiB,
                or holds no image.
        """
        try:
            data = read_file(path, _MOST_BYTES)
        except OSError as error:
            raise UnreadableImage(error.strerror or str(error)) from None
        return cls(data)

    def _measure(self) -> None:
        """Learn the size, from the header alone of most JPEGs."""
        data = self.data
        if simplejpeg is not None and simplejpeg.is_jpeg(data):
            with suppress(ValueError):
                height, width, space, _ = simplejpeg.decode_jpeg_header(data)
                # CMYK has no agreed way to RGB: Pillow's serves.
                if space in ("YCbCr", "Gray", "RGB"):
                    self.height, self.width = height, width
                    return
        self._open()

    def pixels(self, box: Box, factor: int = 1) -> NDArray[np.uint8]:
        """Decode the pixels inside a box: uint8 (rows, columns, 3).

        Args:
            box: (top, left, height, width) in pixels of the whole image.
            factor: 1, 2, 4 or 8: decode a JPEG at 1/factor of its size, the box included; must
                divide every edge of the box.

        Raises:
            UnreadableImage: the image cannot be read completely, or its pixels have no agreed
                range, as Pillow judges.
        """
        if self._opened is None:
            part = decode_region(self.data, box) if factor == 1 else None
            if part is not None:
                return part
            try:
                whole = simplejpeg.decode_jpeg(
                    self.data,
                    min_height=-(-self.height // factor),
                    min_width=-(-self.width // factor),
                )
                return _inside(whole, box, factor)
            except ValueError:
                self._open()
        if self._opened.format != "JPEG" or self._opened.mode not in ("RGB", "L"):
            factor = 1
        elif factor > 1:
            self._opened.draft("RGB", (self.width // factor, self.height // factor))
        with _decoding():
            return _inside(rgb(self._opened), box, factor)

    @property
    def plain(self) -> bool:
        """Whether this is a complete RGB or grey JPEG, which all decoders read alike."""
        known = self._opened is None or (
            self._opened.format == "JPEG" and self._opened.mode in ("RGB", "L")
        )
        return known and self.data.endswith(END)

    def show(self, view: View) -> Tensor:
        """Decode and resize the part of the image in a view: uint8 (3, size, size).

        Raises:
            UnreadableImage: see `pixels`.
        """
        resized = _resize(self.pixels(view.box, view.factor), *view.resized)
        top, left = view.corner
        square = resized[:, top : top + view.size, left : left + view.size]
        return square.flip(-1) if view.flip else square

    def _open(self) -> None:
        from PIL import Image

        Image.preinit()  # the formats in common use; others are loaded when these do not fit
        with _decoding():
            self._opened = Image.open(io.BytesIO(self.data), formats=_FORMATS)
        self.width, self.height = self._opened.size


@contextmanager
def _decoding() -> Iterator[None]:
    """Make one kind of error of all that Pillow raises: its parsers fail in many ways."""
    try:
        yield
    except Exception as error:
        # Pillow names the object in memory that it could not identify.
        reason = re.sub(r" <_io\.BytesIO.*>", "", str(error))
        known = isinstance(error, (OSError, ValueError, SyntaxError))
        name = "" if known and reason else f"{type(error).__name__}: "
        raise UnreadableImage(" ".join(f"{name}{reason}".split()).rstrip(": ")) from error


def _inside(array: NDArray[np.uint8], box: Box, factor: int) -> NDArray[np.uint8]:
    top, left, height, width = (edge // factor for edge in box)
    return array[top : top + height, left : left + width]


def _resize(pixels: NDArray[np.uint8], height: int, width: int) -> Tensor:
    """Resize uint8 (rows, columns, 3) to a channels-last uint8 (3, height, width)."""
    # A contiguous copy of the box takes torch's vectorised path for channels-last bytes.
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).unsqueeze(0)
    if image.shape[-2:] == (height, width):
        return image[0]
    return torch.nn.functional.interpolate(image, (height, width), mode="bilinear", antialias=True)[
        0
    ]
