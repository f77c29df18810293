"""One run: ``from largebatch.train import run, Outcome`` is the door for Python.

What they stand on (data, models, the operators) is imported when they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from largebatch.train.outcome import Outcome
    from largebatch.train.session import run

__all__ = ["Outcome", "run"]


def __getattr__(name: str) -> Any:
    if name == "Outcome":
        from largebatch.train.outcome import Outcome

        return Outcome
    if name == "run":
        from largebatch.train.session import run

        return run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
