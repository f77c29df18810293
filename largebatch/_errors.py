"""The exceptions that are printed in one line, and the words for other people's."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


def one_line(text: str) -> str:
    """Return ``text`` as a line that is safe on a terminal, wherever it comes from.

    Space of any kind becomes one blank; what does not print (escapes, controls, marks that turn the
    direction of writing, halves of a surrogate pair) is spelled out.
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in " ".join(text.split())
    )


class UserError(ValueError):
    """A mistake the user can mend: one line that names the key, the value and what is allowed.

    The command line prints it without a traceback and exits with 2; an empty one (said by another
    rank already) only exits with 2.

    Attributes:
        one_rank: only this rank met it, so this rank has to say it; otherwise rank 0 does.
    """

    one_rank = False

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return a hint at the allowed name closest to ``name``; empty if none is close."""
    close = get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


class RunFailure(RuntimeError):
    """A run that cannot go on through no mistake in its config (a full disk, a lost rank).

    The command line prints it as one line and exits with 1; the last checkpoint stands.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class Lost(RunFailure):
    """A run that its own config has brought to an end: started again, it would end so again.

    It has diverged, or wants more memory than there is. Its run directory keeps the reason.
    """


def raised(error: BaseException) -> str:
    """Return what a user's code raised, and where in it: TYPE: MESSAGE (FILE:LINE).

    The place is the innermost one outside of installed packages, this one and Python itself; it is
    left out where there is none.
    """
    theirs = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame)]
    where = f" ({theirs[-1].filename}:{theirs[-1].lineno})" if theirs else ""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{': ' * bool(text)}{text[:500]}{where}"


def _is_users(frame: traceback.FrameSummary) -> bool:
    path = Path(frame.filename)
    others = (Path(__file__).parent, *map(Path, sysconfig.get_paths().values()))
    return path.is_absolute() and not any(path.is_relative_to(other) for other in others)
