"""The exceptions that are printed in one line, and one-line forms of other exceptions."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


def one_line(text: str) -> str:
    """Return ``text`` as one line that is safe on a terminal, whatever its origin.

    White space of any kind becomes one blank. Characters that do not print (escapes, controls,
    marks that change the writing direction, halves of a surrogate pair) are spelled out.
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in " ".join(text.split())
    )


class UserError(ValueError):
    """A mistake that the user can correct: one line with the key, the value and the allowed values.

    The command line prints the message without a traceback and exits with 2. With an empty message
    (printed by another rank already) it only exits with 2.

    Attributes:
        one_rank: only this rank met the mistake, so this rank prints it; otherwise rank 0 does.
    """

    one_rank = False

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return a hint at the allowed name closest to ``name``; empty if none is close."""
    close = get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


class RunFailure(RuntimeError):
    """A run cannot continue, without a mistake in its config (a full disk, a lost rank).

    The command line prints the message as one line and exits with 1. The last checkpoint is kept.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class Lost(RunFailure):
    """A run has failed because of its own config, and would fail again if restarted.

    The run has diverged, or needs more memory than there is. Its run directory keeps the reason.
    """


def raised(error: BaseException) -> str:
    """Return an error of a user's code with its place: TYPE: MESSAGE (FILE:LINE).

    The place is the innermost one outside of installed packages, this package and Python itself.
    Without such a place it is left out.
    """
    theirs = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame)]
    where = f" ({theirs[-1].filename}:{theirs[-1].lineno})" if theirs else ""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{': ' * bool(text)}{text[:500]}{where}"


def _is_users(frame: traceback.FrameSummary) -> bool:
    path = Path(frame.filename)
    others = (Path(__file__).parent, *map(Path, sysconfig.get_paths().values()))
    return path.is_absolute() and not any(path.is_relative_to(other) for other in others)
