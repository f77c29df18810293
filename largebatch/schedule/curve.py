"""What a learning-rate curve is, and the registry of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from largebatch._registry import Facts, Registry

Curve: TypeAlias = Callable[[int, float], float]
"""``curve(samples, peak) -> rate``: the rate after ``samples``, where ``peak`` is its maximum."""


@dataclass(frozen=True)
class Timeline:
    """The times of a run in samples, regime adaptation included: what a curve is built from.

    Args:
        total: length of the run.
        start: end of the warm-up, where the decay of poly, cosine, sgdr and cyclical begins.
        step: one step of the reference batch.
        milestones: those of multistep.
        cycle: the first cycle of sgdr, half a cycle of cyclical.
    """

    total: int
    start: int = 0
    step: int = 1
    milestones: tuple[int, ...] = ()
    cycle: int | None = None


@dataclass(frozen=True)
class CurveFacts(Facts):
    """What the rest of the package has to know of a curve.

    Attributes:
        takes: the keys of ``schedule`` that it has a use for, beside those that all have.
        cycle: what ``schedule.cycle`` is the length of, where the curve has cycles: a whole one,
            after which it restarts, or the half of one, from bottom to peak.
    """

    takes: frozenset[str] = frozenset()
    cycle: Literal["whole", "half"] | None = None

    def words(self) -> Iterator[str]:
        """Yield the facts, a short line each."""
        own = [f"schedule.{name}" for name in sorted(self.takes)]
        yield f"keys of its own: {', '.join(own) or 'none'}"
        if self.cycle is not None:
            yield f"has cycles, for snapshot ensembles too; schedule.cycle is a {self.cycle} one"


curves: Registry[Callable[..., Curve], CurveFacts] = Registry(
    "schedule.curve", lambda _: CurveFacts()
)
"""Factories ``(config, timeline) -> Curve``; ``config`` is the ``schedule`` section."""
