"""What a step means: forward, loss, figures, and the weight the sum is divided by."""

from __future__ import annotations

from largebatch.tasks.carry import Carry
from largebatch.tasks.classification import Classification
from largebatch.tasks.config import TaskConfig
from largebatch.tasks.figure import LOSS, Figure
from largebatch.tasks.registry import build_task, tasks
from largebatch.tasks.stream_rows import StreamRows
from largebatch.tasks.task import Atom, Task, Votes

__all__ = [
    "LOSS",
    "Atom",
    "Carry",
    "Classification",
    "Figure",
    "StreamRows",
    "Task",
    "TaskConfig",
    "Votes",
    "build_task",
    "tasks",
]
