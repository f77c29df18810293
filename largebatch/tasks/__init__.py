"""Tasks: they define a training step by forward pass, loss, figures and the weight of a batch.

Classification, language modelling, contrastive learning and regression are included; ``task.name``
in a config chooses one. The loss is a sum, and the trainer divides it by the step's whole weight.
"""

from __future__ import annotations

from largebatch.tasks.carry import Carry
from largebatch.tasks.causal_lm import CausalLM, CausalLMConfig
from largebatch.tasks.classification import Classification, ClassificationConfig
from largebatch.tasks.config import TaskConfig
from largebatch.tasks.contrastive import Contrastive, ContrastiveConfig
from largebatch.tasks.coupled import Coupled
from largebatch.tasks.figure import LOSS, Figure
from largebatch.tasks.masked_lm import MaskedLM, MaskedLMConfig
from largebatch.tasks.registry import (
    TaskFacts,
    build_task,
    check_task,
    config_of,
    default_config,
    tasks,
)
from largebatch.tasks.regression import Regression
from largebatch.tasks.stream_rows import StreamRows
from largebatch.tasks.task import Atom, Task, Votes

__all__ = [
    "LOSS",
    "Atom",
    "Carry",
    "CausalLM",
    "CausalLMConfig",
    "Classification",
    "ClassificationConfig",
    "Contrastive",
    "ContrastiveConfig",
    "Coupled",
    "Figure",
    "MaskedLM",
    "MaskedLMConfig",
    "Regression",
    "StreamRows",
    "Task",
    "TaskConfig",
    "TaskFacts",
    "Votes",
    "build_task",
    "check_task",
    "config_of",
    "default_config",
    "tasks",
]
