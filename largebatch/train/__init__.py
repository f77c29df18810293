"""Train one run: ``from largebatch.train import run, Outcome`` is the entry point for Python.

``run(config)`` starts a run, continues it from its newest checkpoint, or finds it finished.
``largebatch train`` is the same on the command line. Data, models and operators are imported only
when they are used.
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
