"""A text's tokens, memory-mapped from the file itself, or tokenised once and cached."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from largebatch._cache import cache_folder
from largebatch._errors import RunFailure
from largebatch.data.config import DataConfig
from largebatch.data.text_files import Span, TextFiles, text_files
from largebatch.data.tokenizers import NAMES, Numbers, Tokenizer, build_tokenizer
from largebatch.record import json_text

VERSION = "1"  # of what lies in the cache
ABOUT = "about.json"


@dataclass(frozen=True)
class Tokens:
    """The tokens of both splits.

    Attributes:
        train, val: (tokens,), any unsigned type, mapped from a file.
        vocabulary: upper bound of the tokens; all tokens are below it.
        mask: the token that stands for a hidden one, if the tokenizer has one.
        bytes_per_token: mean bytes per token of the validation text; None: not known.
    """

    train: Numbers
    val: Numbers
    vocabulary: int
    mask: int | None
    bytes_per_token: float | None


def read_tokens(config: DataConfig) -> Tokens:
    """Return the tokens of the text that the ``data`` section names.

    Ranks of a host map the same file. If the text is not already a file of tokens, it is tokenised
    once and stored in the user's cache folder. The name is made from its files, their times and the
    tokenizer.

    Raises:
        UserError: there is no text, or the text is not of the kind that the section names.
    """
    tokenizer = build_tokenizer(config)
    files = text_files(config, tokenizer.unit, tokenizer.characters)
    parts = {"train": files.train, "val": files.val}
    if tokenizer.direct and all(len(spans) <= 1 for spans in parts.values()):
        tokenizer.fit((*files.train, *files.val))
        found = {split: _of_file(spans, tokenizer) for split, spans in parts.items()}
    else:
        folder = _stored(tokenizer, config, files)
        tokenizer.load(json.loads((folder / ABOUT).read_text(encoding="utf-8")))
        found = {
            split: _mapped(str(folder / f"{split}.bin"), tokenizer, 0, None) for split in parts
        }
    train, val = found["train"], found["val"]
    size = sum(span.stop - span.start for span in files.val)
    per_token = size / len(val) if tokenizer.bytes_known and len(val) else None
    return Tokens(train, val, tokenizer.vocabulary, tokenizer.mask, per_token)


def text_digest(config: DataConfig) -> str:
    """Return the hash of the text and its tokenizer that goes into the config.

    Raises:
        UserError: there is no text, or no such tokenizer.
    """
    tokenizer = build_tokenizer(config)
    files = text_files(config, tokenizer.unit, tokenizer.characters)
    file = _tokenizer_file(config)
    return files.digest(file.read_bytes() if file else type(tokenizer).__name__)


def _tokenizer_file(config: DataConfig) -> Path | None:
    name = config.tokenizer
    return Path(name) if name and name not in NAMES else None


def _stored(tokenizer: Tokenizer, config: DataConfig, files: TextFiles) -> Path:
    """Return the folder of the text's tokens, after they were written if they are not there."""
    place = cache_folder("tokens") / _name(tokenizer, config, files)
    if (place / ABOUT).exists():
        return place
    with tempfile.TemporaryDirectory(dir=place.parent) as folder:
        made = Path(folder, "made")
        made.mkdir(mode=0o700)
        tokenizer.fit((*files.train, *files.val))
        try:
            for split, spans in (("train", files.train), ("val", files.val)):
                with open(made / f"{split}.bin", "wb") as file:
                    for span in spans:
                        for numbers in tokenizer.encode(span):
                            file.write(numbers.astype(tokenizer.dtype, copy=False).tobytes())
            about = {**tokenizer.about(), "vocabulary": tokenizer.vocabulary}
            (made / ABOUT).write_text(json_text(about), encoding="utf-8")
            with suppress(OSError):  # another rank was quicker
                made.rename(place)
        except OSError as error:
            raise RunFailure(
                f"data.root: its tokens cannot be kept in {place.parent}: {error.strerror}"
            ) from error
    return place


def _name(tokenizer: Tokenizer, config: DataConfig, files: TextFiles) -> str:
    found = blake2b(f"{VERSION} {type(tokenizer).__name__} {tokenizer.unit};".encode())
    own = _tokenizer_file(config)
    spans = [*files.train, *files.val]
    for path in (*([own] if own else []), *(Path(span.path) for span in spans)):
        status = path.stat()
        found.update(f"{path.absolute()} {status.st_size} {status.st_mtime_ns};".encode())
    found.update(f"{len(files.train)} {[(s.start, s.stop) for s in spans]}".encode())
    return found.hexdigest()[:32]


def _of_file(spans: Sequence[Span], tokenizer: Tokenizer) -> Numbers:
    if not spans:
        return np.zeros(0, tokenizer.dtype)
    (span,) = spans
    return _mapped(span.path, tokenizer, span.start, span.stop)


def _mapped(path: str, tokenizer: Tokenizer, start: int, stop: int | None) -> Numbers:
    """Map a part of a file, or what is left of it; nothing of an empty one."""
    size = (os.path.getsize(path) if stop is None else stop) - start
    count = size // np.dtype(tokenizer.dtype).itemsize
    if count == 0:
        return np.zeros(0, tokenizer.dtype)
    return np.memmap(path, tokenizer.dtype, "r", start, (count,))
