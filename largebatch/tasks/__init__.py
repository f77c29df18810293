"""What a step means: forward, loss, metrics, and the weight the sum is divided by."""

from __future__ import annotations

from collections.abc import Callable

from largebatch._registry import Registry
from largebatch.tasks.classification import Classification
from largebatch.tasks.config import TaskConfig

tasks: Registry[Callable[..., Classification]] = Registry("task.name")
tasks.register("classification", "cross-entropy over classes, top-1 and top-5")(Classification)


def build_task(config: TaskConfig, num_classes: int) -> Classification:
    """Return the task that ``config.name`` names."""
    return tasks.entry(config.name).factory(config, num_classes)


__all__ = ["Classification", "TaskConfig", "build_task", "tasks"]
