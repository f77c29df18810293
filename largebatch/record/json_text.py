"""Strict JSON: NaN and infinity are never written and never read as numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TypeGuard

from largebatch._errors import UserError
from largebatch.record.files import read_file

MOST_BYTES = 1 << 20  # of a file that is one object: such are small

_LINE = json.JSONEncoder(allow_nan=False)
_PAGE = json.JSONEncoder(allow_nan=False, indent=2)


def json_text(value: Any, indented: bool = False) -> str:
    """Return ``value`` as JSON; numbers that are not finite become null."""
    encoder = _PAGE if indented else _LINE
    try:
        return encoder.encode(value)
    except ValueError:
        return encoder.encode(finite(value))


def finite(value: Any) -> Any:
    """Return nested dicts, lists and tuples with None for every number that is not finite."""
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    if isinstance(value, dict):
        return {
            str(key) if finite(key) is None else key: finite(each) for key, each in value.items()
        }
    return None if isinstance(value, float) and not math.isfinite(value) else value


def parse_json(text: str | bytes, exact: bool = False) -> Any:
    """Parse untrusted JSON; NaN and infinities, which older runs wrote, become None.

    Args:
        exact: keep NaN and infinities as floats.

    Raises:
        ValueError: the text is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=None if exact else _none)
    except RecursionError:
        raise ValueError("nested too deep") from None


def read_object(path: Path, remedy: str) -> dict[str, Any] | None:
    """Return the JSON object in a small file; None if there is no file.

    Raises:
        UserError: the file is damaged; the message ends with ``remedy``.
    """
    try:
        found = parse_json(read_file(path, MOST_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); {remedy}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: damaged (no JSON object); {remedy}")
    return found


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a value read from JSON is a number that fits a float (not 1e999 or true)."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return -1.7976931348623157e308 <= value <= 1.7976931348623157e308


def _none(_: str) -> None:
    return None
