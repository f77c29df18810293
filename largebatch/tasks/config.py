"""The ``task`` section: what a step means."""

from __future__ import annotations

from dataclasses import dataclass

from largebatch._errors import UserError

FORMER_TARGETS = {"run.target_top1": "top1"}
"""Former keys of a run's target, which are still read, and the figures they are about."""


@dataclass
class TaskConfig:
    """Loss and metrics of a step."""

    name: str = "classification"
    """What the model is trained to do."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes, from 0 to below 1."""

    def check(self) -> None:
        """Refuse what cannot be, naming the key."""
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"task.label_smoothing={self.label_smoothing}: from 0 to below 1")
