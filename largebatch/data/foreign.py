"""Turn errors in a user's code into one line with their place."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from largebatch._errors import RunFailure, UserError
from largebatch.data.decode import is_decoding_error
from largebatch.data.source import UnreadableSample

_OURS = Path(__file__).parent


@contextmanager
def foreign_code(where: str, sample: str = "") -> Iterator[None]:
    """Run a user's code in a ``with`` block.

    Args:
        where: the requested object, for the message.
        sample: the sample being read, if any.

    Raises:
        UnreadableSample: a sample's file cannot be read or decoded.
        UserError: any other error, with its place in the user's code.
    """
    try:
        yield
    except (UserError, RunFailure, UnreadableSample):
        raise
    except Exception as error:
        if sample and is_decoding_error(error):
            raise UnreadableSample(sample, error) from None
        text = " ".join(str(error).split())[:300]
        reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
        raise UserError(f"{where}: {reason}{_place(error)}") from error


def _place(error: Exception) -> str:
    """Say in which line of the user's own code an error arose, or, if in none, in whose."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).parent != _OURS and Path(frame.filename).name != "contextlib.py"
    ]
    own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
