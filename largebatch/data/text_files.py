"""Divide text files into training and validation text, byte by byte."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from largebatch._errors import UserError
from largebatch.data.config import DataConfig
from largebatch.data.files import open_file
from largebatch.data.registry import datasets
from largebatch.data.source import required_root

HELD_OUT = 0.1
BLOCK = 1 << 22  # bytes read at once
HASHED = 256  # blocks of a quarter MiB, spread evenly; a text of up to 64 MiB is hashed whole
HASHED_BLOCK = 1 << 18


@dataclass(frozen=True)
class Span:
    """The bytes from ``start`` to ``stop`` of a file."""

    path: str
    start: int
    stop: int

    def blocks(self, size: int = BLOCK) -> Iterator[bytes]:
        """Read the bytes, ``size`` at a time.

        Raises:
            UserError: the file cannot be read.
        """
        try:
            with open_file(self.path) as file:
                file.seek(self.start)
                left = self.stop - self.start
                while left > 0 and (block := file.read(min(size, left))):
                    left -= len(block)
                    yield block
        except OSError as error:
            raise UserError(f"data.root: {self.path!r}: {error.strerror or error}") from None


@dataclass(frozen=True)
class TextFiles:
    """The text of both splits."""

    train: tuple[Span, ...]
    val: tuple[Span, ...]

    def digest(self, *also: str | bytes) -> str:
        """Return a hash of the text, its division into splits and ``also``: 32 hexadecimal digits.

        For a large text, blocks spread evenly over the text are hashed.
        """
        found = hashlib.blake2b(digest_size=16)
        for part in also:
            found.update(part.encode() if isinstance(part, str) else part)
        for spans in (self.train, self.val):
            total = sum(span.stop - span.start for span in spans)
            found.update(f"{len(spans)} {total};".encode())
            stride = max(HASHED_BLOCK, -(-total // HASHED))
            for span in spans:
                for at in range(span.start, span.stop, stride):
                    stop = min(at + HASHED_BLOCK, span.stop)
                    for block in Span(span.path, at, stop).blocks():
                        found.update(block)
        return found.hexdigest()


def text_files(config: DataConfig, unit: int = 1, characters: bool = False) -> TextFiles:
    """Return the text that ``data.root`` names, or Python's own library for ``stdlib``.

    A folder with two entries ``train`` and ``val`` (files with any extension, or folders) has these
    splits. Otherwise the end of all files, in the order of their paths, is held out.

    Args:
        unit: bytes that a cut must not divide.
        characters: whether a cut must not divide a UTF-8 character either.

    Raises:
        UserError: there is no text, or too little to hold out a part.
    """
    if datasets.entry(config.name).facts.library:
        folder = Path(sysconfig.get_paths()["stdlib"])
        files = sorted(folder.glob("*.py"))
        if not files:
            raise UserError(f"data.name=stdlib: no .py file in {str(folder)!r}; use data.name=text")
        return _held_out(config, files, unit, characters)
    root = Path(required_root(config, "a file of text, or a folder of them"))
    if root.is_dir():
        parts = {split: _part(root, split) for split in ("train", "val")}
        train, val = (_whole(files) for files in parts.values())
        if train and val:
            if config.held_out is not None:
                raise UserError(
                    f"data.held_out={config.held_out}: {str(root)!r} has a validation text, val"
                )
            return TextFiles(train, val)
        return _held_out(config, _files(root), unit, characters)
    return _held_out(config, [root], unit, characters)


def _part(root: Path, split: str) -> list[Path]:
    """Return the files of a split where one entry of the folder is named for it."""
    named = [path for path in root.iterdir() if path.stem == split]
    if len(named) != 1:
        return []
    return _files(named[0]) if named[0].is_dir() else named


def _files(folder: Path) -> list[Path]:
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(found)


def _whole(files: Sequence[Path]) -> tuple[Span, ...]:
    """Return the spans of whole files, without empty ones."""
    spans = []
    for file in files:
        try:
            with open_file(file) as opened:
                size = os.fstat(opened.fileno()).st_size
        except OSError as error:
            raise UserError(
                f"data.root={str(file)!r}: {error.strerror or error}; name a file of text, or a"
                " folder of them"
            ) from None
        if size:
            spans.append(Span(str(file), 0, size))
    return tuple(spans)


def _held_out(config: DataConfig, files: Sequence[Path], unit: int, characters: bool) -> TextFiles:
    spans = _whole(files)
    total = sum(span.stop - span.start for span in spans)
    if total == 0:
        raise UserError(f"data.root={str(config.root)!r}: there is no text in it: 0 bytes")
    cut = int((1 - (config.held_out or HELD_OUT)) * total)
    train, val, at = [], [], 0
    for span in spans:
        inside = min(max(cut - at, 0), span.stop)
        inside -= inside % unit
        if characters and 0 < inside < span.stop:
            inside = _next_character(span, inside)
        if inside:
            train.append(Span(span.path, 0, inside))
        if inside < span.stop:
            val.append(Span(span.path, inside, span.stop))
        at += span.stop
    return TextFiles(tuple(train), tuple(val))


def _next_character(span: Span, at: int) -> int:
    """Return where the first character of UTF-8 begins at or after a byte."""
    following = next(Span(span.path, at, min(at + 4, span.stop)).blocks(), b"")
    for ahead, byte in enumerate(following):
        if byte & 0xC0 != 0x80:
            return at + ahead
    return at
