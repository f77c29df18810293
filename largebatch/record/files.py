"""Write files completely or not at all, and read regular files only."""

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
    """Write a file so that readers see the old or the new content, even after a crash.

    The content goes to a temporary name in the same folder, is fsynced, and is renamed. A link is
    followed and kept. A new file takes the mode of the file that it replaces. Anything that is not
    a regular file (a terminal, a pipe, a device), and the process's own open descriptors
    (``/dev/stdout``), are written directly.

    Raises:
        OSError: the disk is full or the folder cannot be written; ``path`` is unchanged.
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
    """The path is a pipe, a device, a socket or a folder, which may never end."""


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading, for a ``with`` block.

    Raises:
        OSError: the file is absent or cannot be read; :class:`NotRegular` if it is not a regular
            file.
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
        most: largest number of bytes, where more are an error; -1: any number.
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
    """Sync a folder, so that renames in it survive a power cut."""
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
