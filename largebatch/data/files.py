"""Open files of a data set safely, and print their names safely."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from largebatch._errors import UserError
from largebatch.record.benchmark import memory_gib


def open_file(path: Path | str) -> BinaryIO:
    """Open a regular file for reading.

    Pipes and devices are refused at once: a pipe could wait for a writer for ever, and a device
    need not end.

    Raises:
        OSError: the file is absent, may not be read or is not a regular file.
    """
    descriptor, _ = _opened(path)
    return open(descriptor, "rb")


def read_file(path: Path | str, most: int) -> bytes:
    """Read a regular file of at most ``most`` bytes, in fewer calls than by `open_file`.

    Raises:
        OSError: the file cannot be opened as a regular file, or is larger.
    """
    descriptor, size = _opened(path)
    try:
        if size > most:
            raise OSError(errno.EFBIG, f"{size} bytes are more than the {most} allowed", str(path))
        parts = []
        while size > 0 and (part := os.read(descriptor, size)):
            parts.append(part)
            size -= len(part)
    finally:
        os.close(descriptor)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def refuse_beyond_memory(what: str, size: int) -> None:
    """Raise an error if ``size`` bytes of ``what`` exceed this machine's memory."""
    if size > memory_gib() * 2**30:
        raise UserError(
            f"{what} takes {size / 2**30:.1f} GiB, more than this machine's "
            f"{memory_gib():.1f} GiB of memory"
        )


def printable(text: str) -> str:
    """Escape characters unsafe for a terminal: control characters and bytes that are not UTF-8."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def _opened(path: Path | str) -> tuple[int, int]:
    """Open a regular file; return its descriptor and its size in bytes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return descriptor, status.st_size
