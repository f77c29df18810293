"""How far a run is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Position:
    """How far the run is; checkpoints hold it.

    Attributes:
        samples, steps: seen and taken.
        evaluated: samples at the last evaluation.
        seconds: of all sessions of the run together.
        last: the last validation line, with what instruments found at the end.
        reached: the figures for which the run ended before its length, when and where.
        nonfinite: counts of what was not finite, see :class:`NonFinite`.
    """

    samples: int = 0
    steps: int = 0
    evaluated: int = 0
    seconds: float = 0.0
    last: dict[str, Any] | None = None
    reached: dict[str, Any] | None = None
    nonfinite: dict[str, int] = field(default_factory=dict)

    def end(self, figures: Mapping[str, float]) -> None:
        """Let the run end here for the sake of these figures; the first to ask are the reason."""
        if self.reached is None:
            place = {"seconds": self.seconds, "samples": self.samples, "steps": self.steps}
            self.reached = {**figures, **place}
