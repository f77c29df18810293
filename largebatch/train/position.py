"""The position of a run: samples seen, steps taken, and counters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Position:
    """The position of a run, as checkpoints hold it.

    Attributes:
        samples, steps: samples seen and steps taken.
        evaluated: samples at the last evaluation.
        seconds: seconds of all sessions of the run together.
        last: the last validation line, with the instruments' figures at the end.
        reached: the figures that ended the run early, with time and sample; empty otherwise.
        nonfinite: counts of non-finite steps, see :class:`NonFinite`.
    """

    samples: int = 0
    steps: int = 0
    evaluated: int = 0
    seconds: float = 0.0
    last: dict[str, Any] | None = None
    reached: dict[str, Any] | None = None
    nonfinite: dict[str, int] = field(default_factory=dict)

    def end(self, figures: Mapping[str, float]) -> None:
        """End the run here because of these figures; only the first call counts."""
        if self.reached is None:
            place = {"seconds": self.seconds, "samples": self.samples, "steps": self.steps}
            self.reached = {**figures, **place}
