"""The one exception for a user's mistakes."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake the user can mend: one line that names the key, the value and what is allowed.

    The command line prints it without a traceback and exits with 2; an empty one (said by another
    rank already) only exits with 2.

    Attributes:
        one_rank: only this rank met it, so this rank has to say it; otherwise rank 0 does.
    """

    one_rank = False

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return a hint at the allowed name closest to ``name``; empty if none is close."""
    close = get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


class RunFailure(RuntimeError):
    """A run that cannot go on through no mistake in its config (a full disk, a lost rank).

    The command line prints it as one line and exits with 1; the last checkpoint stands.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
