"""Files that are either whole or absent, and reading none that never ends."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader, or a crash, meets the old content or the new, never a part.

    The content goes to a temporary name in the same folder, is fsynced, and is renamed. A link is
    followed, and keeps pointing where it did; a file that is replaced hands on its mode. What is no
    regular file (a terminal, a pipe, a device) and the process's own open descriptors
    (``/dev/stdout``) are written through.

    Raises:
        OSError: the disk is full or the folder cannot be written; ``path`` is as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    descriptor = _own_descriptor(path)
    if descriptor is not None:
        _write_all(descriptor, data)
        return
    try:
        found = os.stat(path).st_mode
    except FileNotFoundError:
        found = None
    if found is not None and not stat.S_ISREG(found):
        descriptor = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            _write_all(descriptor, data)
        finally:
            os.close(descriptor)
        return
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if found is not None:
            os.chmod(temporary, stat.S_IMODE(found))
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


class NotRegular(OSError):
    """What stands at a path is a pipe, a device, a socket or a folder: it may never end."""


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read it, for the length of a block.

    Raises:
        OSError: it is absent or cannot be read; or, as :class:`NotRegular`, it is no regular file.
    """
    _require_regular(os.stat(path).st_mode, path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        _require_regular(os.fstat(descriptor).st_mode, path)  # another since
    except OSError:
        os.close(descriptor)
        raise
    with open(descriptor, "rb") as file:
        yield file


def read_file(path: Path, most: int = -1) -> bytes:
    """Return the content of a regular file, with the errors of :func:`open_regular`.

    Args:
        most: bytes that it may have, where more are an error as well; -1: any number.
    """
    with open_regular(path) as file:
        content = file.read() if most < 0 else file.read(most + 1)
    if 0 <= most < len(content):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return content


def _require_regular(mode: int, path: Path) -> None:
    if not stat.S_ISREG(mode):
        raise NotRegular(errno.EINVAL, "not a regular file", str(path))


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _own_descriptor(path: Path) -> int | None:
    """Return the open descriptor that a path such as ``/dev/stdout`` names, None for others.

    To open such a path anew would write over what the shell appends there.
    """
    for _ in range(40):  # as many links as the kernel follows
        if os.path.realpath(path.parent) == f"/proc/{os.getpid()}/fd" and path.name.isdecimal():
            return int(path.name)
        if not path.is_symlink():
            return None
        path = path.parent / os.readlink(path)
    return None


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
