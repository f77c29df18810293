"""The ``task`` section: what a step means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

FORMER_TARGETS = {"run.target_top1": "top1"}
"""Former keys of a run's target, which are still read, and the figures they are about."""


@dataclass
class TaskConfig:
    """Loss and metrics of a step: what all tasks have in common.

    A task with keys of its own derives a dataclass from this and names it by its attribute
    ``config``; they are the keys of the section where ``task.name`` names that task.

    Attributes:
        defaults: of other sections, where the task's differ: {section: {key: value}}.
    """

    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    name: str = "classification"
    """What the model is trained to do; package.module:callable is a task of your own."""

    def check(self) -> None:
        """Refuse what cannot be, naming the key.

        Raises:
            UserError: a key is out of range.
        """
