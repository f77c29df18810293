"""The config section ``task``: the loss and figures of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

FORMER_TARGETS = {"run.target_top1": "top1"}
"""Former keys of a run's target, which are still read, and the figures they are about."""


@dataclass
class TaskConfig:
    """Loss and metrics of a step: the keys that all tasks have in common.

    A task with further keys derives a dataclass from this class and names it in its attribute
    ``config``. These are then the keys of the section when ``task.name`` names the task.

    Attributes:
        defaults: defaults of other sections that differ for the task: {section: {key: value}}.
    """

    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    name: str = "classification"
    """What the model is trained to do; package.module:callable is a task of your own."""

    def check(self) -> None:
        """Refuse what cannot be, naming the key.

        Raises:
            UserError: a key is out of range.
        """
