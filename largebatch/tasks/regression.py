"""Regression: half the squared distance to real targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from largebatch.data import FeatureBatch
from largebatch.tasks.config import TaskConfig
from largebatch.tasks.registry import tasks
from largebatch.tasks.task import Task


@dataclass
class RegressionConfig(TaskConfig):
    """Real-valued targets of feature vectors."""

    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "data": {"name": "quadratic"},
        "model": {"name": "linear"},
    }


@tasks.register("regression", "half the squared distance to real targets")
class Regression(Task[FeatureBatch]):
    """The loss of a step is the mean over rows of ``1/2 |model(inputs) - targets|^2``.

    Args:
        outputs: number of targets per row.
    """

    config = RegressionConfig

    def __init__(self, outputs: int) -> None:
        self.outputs = outputs

    def step_weight(self, samples: int) -> float:
        """Return the number of rows."""
        return float(samples)

    def weight(self, batch: FeatureBatch) -> float:
        """Return the number of rows."""
        return float(len(batch))

    def train(self, model: nn.Module, batch: FeatureBatch) -> tuple[Tensor, Tensor]:
        """Return the loss sum with gradient, and ``[loss, rows]``."""
        found = model(batch.inputs)
        wide = found if found.dtype == torch.float64 else found.float()
        loss = (wide - batch.targets).square().sum() / 2
        return loss, torch.stack((loss.detach(), loss.new_tensor(float(len(batch)))))

    def evaluate(self, model: nn.Module, batch: FeatureBatch) -> Tensor:
        """Return ``[loss, rows]``."""
        return self.train(model, batch)[1]
