"""The user's cache folder, for measurements and compiled code kept from run to run.

Its content is loaded and trusted, so nobody else may write there. As with ssh's keys, a folder that
belongs to another user, or that others may write, is not used.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import stat
import tempfile
from pathlib import Path

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def cache_folder(name: str = "") -> Path:
    """Return the cache folder, or its subfolder ``name``; it exists and is this user's alone.

    The folder is ``largebatch`` in XDG_CACHE_HOME or ``~/.cache``. If this is not possible (no
    home, no space, somebody else's folder), it is a folder among the temporary files. If that
    belongs to somebody else too, it is a folder of this process alone, which is removed at its end.
    """
    home = os.environ.get("XDG_CACHE_HOME") or _home()
    places = [Path(home, "largebatch")] if os.path.isabs(home) else []
    places.append(Path(tempfile.gettempdir(), f"largebatch-{os.getuid()}"))
    for place in (*places, None):  # a folder of this process's own is not made before it is needed
        folder = _own() if place is None else place
        if _private(folder, tighten=True) and (not name or _private(folder / name)):
            return folder / name
    raise OSError(
        f"no folder for {name or 'largebatch'} can be made: {', '.join(map(str, places))}"
    )


def trusted(path: Path) -> bool:
    """Return whether a file or folder is this user's, not a link, and not writable by others."""
    found = path.lstat()
    plain = stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)
    return plain and found.st_uid == os.getuid() and not found.st_mode & OTHERS_WRITE


def _private(folder: Path, tighten: bool = False) -> bool:
    """Make ``folder`` where it is not there; return whether it is to be trusted and written.

    Args:
        tighten: take from others the right to write in one of this user's, which an umask of 0002
            gave them.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True, mode=0o700)
        found = folder.lstat()
        mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
        if tighten and mine and found.st_mode & OTHERS_WRITE:
            folder.chmod(stat.S_IMODE(found.st_mode) & ~OTHERS_WRITE)
        return trusted(folder) and os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        return False


def _home() -> str:
    try:
        return str(Path.home() / ".cache")
    except RuntimeError:  # HOME is unset and the user id is nobody's
        return ""


@functools.cache
def _own() -> Path:
    folder = tempfile.mkdtemp(prefix="largebatch-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
