"""Store measured points in a file that survives a kill."""

from __future__ import annotations

import fcntl
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from largebatch._errors import RunFailure, UserError
from largebatch.record import json_text, parse_json, read_file, write_atomically


class Points:
    """The points of a picture, one JSON object per line, in the picture's order.

    A line is one ``write`` to the kernel. So a killed process leaves complete lines and at most one
    incomplete line, which is removed when the file is opened again. Only one process may have the
    file open.

    Args:
        path: path of the file, which is made if absent.

    Raises:
        UserError: the file cannot be written, is in use by another process, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
            self._file = os.open(path, flags, 0o666)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise UserError(f"{path}: in use by another command; wait for it") from None
        try:
            self.found = self._read()
        except BaseException:
            os.close(self._file)
            raise

    def add(self, place: tuple[float, ...], figures: Mapping[str, float]) -> None:
        """Append the next point.

        Raises:
            RunFailure: the disk is full.
        """
        line = {"at": list(place), **figures}
        data = (json_text(line) + "\n").encode()
        try:
            if os.write(self._file, data) != len(data):
                raise OSError(None, "the disk is full")
        except OSError as error:
            raise RunFailure(
                f"{self.path}: {error.strerror}; mend that and run the same command again"
            ) from error
        self.found.append(line)

    def close(self) -> None:
        """Sync all points to disk and release the file."""
        os.fsync(self._file)
        os.close(self._file)

    def _read(self) -> list[dict[str, Any]]:
        content = read_file(self.path)
        whole = content[: content.rfind(b"\n") + 1]
        found = []
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                values = parse_json(line)
                values["at"] = [float(each) for each in values["at"]]
            except (ValueError, TypeError, KeyError):
                raise UserError(
                    f"{self.path}: line {number} is damaged; delete the file to measure it anew"
                ) from None
            found.append(values)
        os.ftruncate(self._file, len(whole))
        return found


def require_same_settings(path: Path, values: Mapping[str, Any]) -> None:
    """Store the settings that points depend on in a file; refuse to continue with other values.

    Raises:
        UserError: the message names the first difference.
    """
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json_text(values, indented=True) + "\n")
        except OSError as error:
            raise UserError(f"--folder {path.parent}: cannot be written ({error})") from None
        return
    try:
        before = parse_json(read_file(path))
        differing = {key for key in {**values, **before} if values.get(key) != before.get(key)}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); take another --folder") from None
    for key in values:
        if key in differing:
            old, new = ("unset" if v is None else v for v in (before.get(key), values[key]))
            raise UserError(
                f"--folder {path.parent}: its points are of {key} {old}, not {new};"
                " take another folder"
            )


def number(value: Any) -> float:
    """Return a figure of a point; a figure that was not finite is read as infinity."""
    return math.inf if value is None else float(value)
