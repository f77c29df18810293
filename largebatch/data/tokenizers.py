"""Tokenizers: bytes, characters, numbers in a file, or a Hugging Face tokenizer file."""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from largebatch._errors import UserError
from largebatch.data.config import DataConfig
from largebatch.data.files import read_file
from largebatch.data.registry import datasets
from largebatch.data.text_files import Span

Numbers = NDArray[np.unsignedinteger[Any]]
NAMES = ("bytes", "characters", "uint16", "uint32")
LARGEST_FILE = 1 << 28  # bytes of a tokenizer's JSON
WIDEST = 1 << 20  # more tokens than any tokenizer has: what lies above is a wrong width


class Tokenizer(ABC):
    """Turns text into numbers.

    Attributes:
        vocabulary: number of tokens; all tokens are below it.
        dtype: the narrowest type that holds the tokens.
        mask: the token that stands for a hidden one, if there is one.
        unit: bytes that must not be divided.
        characters: whether the tokenizer reads UTF-8.
        bytes_known: whether the text's bytes can be counted.
        direct: whether the file itself holds the tokens as numbers.
    """

    vocabulary: int
    dtype: type[np.unsignedinteger[Any]] = np.uint8
    mask: int | None = None
    unit = 1
    characters = False
    bytes_known = True
    direct = False

    def fit(self, spans: Iterable[Span]) -> None:  # noqa: B027
        """Read the whole text, if the tokens depend on it."""

    @abstractmethod
    def encode(self, span: Span) -> Iterator[Numbers]:
        """Yield the tokens of a part of a file.

        Raises:
            UserError: the text does not fit the tokenizer.
        """

    def about(self) -> dict[str, Any]:
        """Return the result of :meth:`fit`, in JSON's types."""
        return {}

    def load(self, about: dict[str, Any]) -> None:
        """Restore an earlier result of :meth:`fit`."""
        self.vocabulary = about["vocabulary"]


class Bytes(Tokenizer):
    """One token per byte."""

    vocabulary, direct = 256, True

    def encode(self, span: Span) -> Iterator[Numbers]:
        """Yield the bytes."""
        for block in span.blocks():
            yield np.frombuffer(block, np.uint8)


class FileNumbers(Tokenizer):
    """A file of numbers without a header, in the machine's byte order, as nanoGPT writes it."""

    bytes_known, direct = False, True

    def __init__(self, name: str) -> None:
        self.name = name
        self.dtype = {"uint16": np.uint16, "uint32": np.uint32}[name]
        self.unit = np.dtype(self.dtype).itemsize

    def fit(self, spans: Iterable[Span]) -> None:
        """Find the largest number, and refuse a file of another width."""
        largest = -1
        for span in spans:
            if span.stop % self.unit:
                raise UserError(
                    f"data.tokenizer={self.name}: {span.path!r} has {span.stop:,} bytes, no whole"
                    f" number of {self.unit} a token"
                )
            odd_zero = self.unit == 2
            for numbers in self.encode(span):
                largest = max(largest, int(numbers.max()))
                odd_zero = odd_zero and not numbers[1::2].any()
            if odd_zero and span.stop - span.start > 64:
                raise UserError(
                    f"data.tokenizer=uint16: every second number of {span.path!r} is 0: it looks"
                    " like uint32; say data.tokenizer=uint32"
                )
        if largest >= WIDEST:
            raise UserError(
                f"data.tokenizer={self.name}: a token is {largest:,}, beyond any vocabulary:"
                " the file looks like uint16; say data.tokenizer=uint16"
            )
        self.vocabulary = largest + 1

    def encode(self, span: Span) -> Iterator[Numbers]:
        """Yield the numbers."""
        for block in span.blocks():
            yield np.frombuffer(block, self.dtype)


class Characters(Tokenizer):
    """One token per character; the vocabulary is the text's characters in Unicode order."""

    characters = True

    def fit(self, spans: Iterable[Span]) -> None:
        """Find the characters of the whole text."""
        present = np.zeros(0x110000, dtype=bool)
        for span in spans:
            for points in _code_points(span):
                present[points] = True
        self._take(np.flatnonzero(present))

    def about(self) -> dict[str, Any]:
        """Return the characters' code points."""
        return {"characters": self._alphabet.tolist()}

    def load(self, about: dict[str, Any]) -> None:
        """Restore the characters' code points."""
        self._take(np.asarray(about["characters"]))

    def encode(self, span: Span) -> Iterator[Numbers]:
        """Yield each character's place in the vocabulary."""
        for points in _code_points(span):
            yield self._table[points]

    def _take(self, alphabet: NDArray[np.int64]) -> None:
        self._alphabet, self.vocabulary = alphabet, len(alphabet)
        self.dtype = narrowest(self.vocabulary)
        self._table = np.zeros(0x110000, dtype=self.dtype)
        self._table[alphabet] = np.arange(len(alphabet))


class FromFile(Tokenizer):
    """A JSON file of Hugging Face's ``tokenizers``, which has to be installed."""

    characters = True

    def __init__(self, path: str) -> None:
        where = f"data.tokenizer={path!r}"
        try:
            content = read_file(path, LARGEST_FILE).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{where}: cannot be read: {error}") from None
        try:
            theirs: Any = import_module("tokenizers")
        except ImportError:
            raise UserError(
                f"{where}: tokenizers is not installed; pip install tokenizers"
            ) from None
        try:
            self._theirs = theirs.Tokenizer.from_str(content)
        except Exception as error:
            raise UserError(f"{where}: no file of Hugging Face's tokenizers: {error}") from None
        self.vocabulary = self._theirs.get_vocab_size()
        self.mask = next(
            (n for t in ("[MASK]", "<mask>") if (n := self._theirs.token_to_id(t)) is not None),
            None,
        )
        self.dtype = narrowest(self.vocabulary)

    def encode(self, span: Span) -> Iterator[Numbers]:
        """Yield the tokens; the text is divided at line ends."""
        for text in _lines(span):
            ids = self._theirs.encode(text, add_special_tokens=False).ids
            yield np.asarray(ids, dtype=self.dtype)


def build_tokenizer(config: DataConfig) -> Tokenizer:
    """Return the tokenizer that the ``data`` section names.

    Raises:
        UserError: the tokenizer's file cannot be read, or a needed package is not installed.
    """
    name = config.tokenizer
    if name is None:
        name = "uint16" if _is_bin(config) else "bytes"
    if name == "bytes":
        return Bytes()
    if name == "characters":
        return Characters()
    if name in ("uint16", "uint32"):
        return FileNumbers(name)
    return FromFile(name)


def narrowest(vocabulary: int) -> type[np.unsignedinteger[Any]]:
    """Return the narrowest type that holds the numbers below ``vocabulary``."""
    return np.uint8 if vocabulary <= 1 << 8 else np.uint16 if vocabulary <= 1 << 16 else np.uint32


def _is_bin(config: DataConfig) -> bool:
    if datasets.entry(config.name).facts.library or config.root is None:
        return False
    root = Path(config.root)
    return root.suffix == ".bin" or (root / "train.bin").is_file()


def _decoded(span: Span) -> Iterator[str]:
    """Yield the text of a part of a file in pieces.

    Raises:
        UserError: it is not UTF-8.
    """
    decoder, at = codecs.getincrementaldecoder("utf-8")(), span.start
    for block in (*span.blocks(), b""):
        try:
            yield decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            place = at + error.start - (len(error.object) - len(block))
            raise UserError(
                f"data.tokenizer: {span.path!r} is no UTF-8: byte {place:,}: {error.reason}; use"
                " data.tokenizer=bytes, or mend the file"
            ) from None
        at += len(block)


def _code_points(span: Span) -> Iterator[NDArray[np.uint32]]:
    for text in _decoded(span):
        yield np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _lines(span: Span) -> Iterator[str]:
    rest = ""
    for text in _decoded(span):
        whole, newline, after = text.rpartition("\n")
        if newline:
            yield rest + whole + newline
            rest = after
        else:
            rest += text
    if rest:
        yield rest
