"""Find image files and classes in a folder, without hidden and system files."""

from __future__ import annotations

import os
from pathlib import Path

from largebatch._errors import UserError
from largebatch.data.decode import is_image
from largebatch.data.files import printable

# What archives, network storage and recycle bins leave; theirs hold small copies of the images.
_NOT_DATA = {
    *("__MACOSX", "@eaDir", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot"),
    *("$RECYCLE.BIN", "System Volume Information", "lost+found", "__pycache__"),
}
_Identity = tuple[int, int]


def find_images(folder: Path | str) -> list[str]:
    """Return the paths of the image files in a folder and the folders below it, sorted.

    Links are followed, but each folder is read once, and folders above ``folder`` are never read.
    Names that begin with a dot (``.ipynb_checkpoints``, ``._x.jpg``) and folders made by systems
    (``@eaDir``, ``__MACOSX``) are left out.

    Raises:
        UserError: a folder cannot be read.
    """
    found: list[str] = []
    # A real folder comes before links to it, so that a new link renames no sample.
    folders, links = [os.fspath(folder)], list[str]()
    seen = _above(folder)
    while folders or links:
        place = folders.pop() if folders else links.pop(0)
        try:
            if (identity := _identity(place)) in seen:
                continue
            seen.add(identity)
            with os.scandir(place) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if is_hidden(entry.name):
                        continue
                    if not _is_folder(entry):
                        found += [entry.path] if is_image(entry.name) else []
                    elif entry.is_symlink():
                        links.append(entry.path)
                    else:
                        folders.append(entry.path)
        except OSError as error:
            raise UserError(f"{printable(place)}: cannot be read: {error.strerror}") from None
    return sorted(found)


def find_classes(split: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted, without the hidden ones.

    Raises:
        OSError: the folder cannot be read.
        UserError: a link makes one folder two classes, or leads back above the classes.
    """
    with os.scandir(split) as entries:
        names = sorted(e.name for e in entries if not is_hidden(e.name) and _is_folder(e))
    above = _above(split) | {_identity(split)}
    known: dict[_Identity, str] = {}
    for name in names:
        identity = _identity(split / name)
        if identity in above:
            raise UserError(f"{printable(str(split / name))}: a link to a folder above it")
        first = known.setdefault(identity, name)
        if first != name:
            raise UserError(
                f"{printable(str(split))}: the classes {printable(first)} and {printable(name)} "
                "are the same folder"
            )
    return names


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is not part of the data."""
    return name.startswith(".") or name in _NOT_DATA


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _above(folder: Path | str) -> set[_Identity]:
    return {_identity(parent) for parent in Path(folder).resolve().parents}


def _identity(folder: Path | str) -> _Identity:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
