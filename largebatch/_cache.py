"""The folder of this user in which the package keeps what is worth keeping from run to run.

What lies in it is loaded and believed, so nobody else may write there: as ssh does with its keys,
a folder of another user or one that others may write is not used.
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
    """Return the folder, or the one called ``name`` in it; it is there, and this user's alone.

    It is ``largebatch`` in XDG_CACHE_HOME or ``~/.cache``. Where that cannot be had (no home, no
    space, somebody else's), a folder in the place for temporary files; and where that is somebody
    else's too, one of this process alone, which goes with it.
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
    """Return whether a file or folder is this user's, no link, and nobody else may write it."""
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
