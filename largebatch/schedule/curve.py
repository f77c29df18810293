"""The interface and the registry of learning-rate curves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from largebatch._registry import Facts, Registry

Curve: TypeAlias = Callable[[int, float], float]
"""``curve(samples, peak) -> rate``: the rate after ``samples``, where ``peak`` is its maximum."""


@dataclass(frozen=True)
class Timeline:
    """The times of a run in samples, from which a curve is built; regime adaptation is included.

    Args:
        total: length of the run.
        start: end of the warm-up, where the decay of poly, cosine, sgdr and cyclical begins.
        step: one step of the reference batch.
        milestones: milestones of multistep.
        cycle: the first cycle of sgdr, half a cycle of cyclical.
    """

    total: int
    start: int = 0
    step: int = 1
    milestones: tuple[int, ...] = ()
    cycle: int | None = None


@dataclass(frozen=True)
class CurveFacts(Facts):
    """Facts about a curve that the rest of the package needs.

    Attributes:
        takes: the keys of ``schedule`` that it uses, beside those that all curves use.
        cycle: meaning of ``schedule.cycle`` if the curve has cycles: the length of a whole cycle,
            after which the curve restarts, or of half a cycle, from bottom to peak.
    """

    takes: frozenset[str] = frozenset()
    cycle: Literal["whole", "half"] | None = None

    def words(self) -> Iterator[str]:
        """Yield the facts, one short line each."""
        own = [f"schedule.{name}" for name in sorted(self.takes)]
        yield f"keys of its own: {', '.join(own) or 'none'}"
        if self.cycle is not None:
            yield f"has cycles, for snapshot ensembles too; schedule.cycle is a {self.cycle} one"


curves: Registry[Callable[..., Curve], CurveFacts] = Registry(
    "schedule.curve", lambda _: CurveFacts()
)
"""Factories ``(config, timeline) -> Curve``; ``config`` is the ``schedule`` section."""
