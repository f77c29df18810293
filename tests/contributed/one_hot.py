"""Regression to one-hot targets."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from largebatch.data import ImageBatch
from largebatch.tasks.figure import Figure
from largebatch.tasks.registry import tasks
from largebatch.tasks.task import Task


@tasks.register("one_hot", "squared distance to one-hot targets", "Hui and Belkin 2021")
class OneHot(Task[ImageBatch]):
    """The weight of a step is its number of images."""

    figures = ("right",)
    headline = Figure("right", percent=True)

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def step_weight(self, samples: int) -> float:
        """Return the number of images."""
        return float(samples)

    def weight(self, batch: ImageBatch) -> float:
        """Return the number of images."""
        return float(len(batch))

    def train(self, model: nn.Module, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        """Return the sum of squared distances, and ``[it, right, images]``."""
        sums = self.evaluate(model, batch)
        return sums[0], sums.detach()

    def evaluate(self, model: nn.Module, batch: ImageBatch) -> Tensor:
        """Return ``[squared distances, right, images]``."""
        outputs = model(batch.inputs).float()
        loss = (outputs - one_hot(batch.targets, self.num_classes)).square().sum()
        right = (outputs.argmax(1) == batch.targets).sum()
        return torch.stack((loss, right, loss.new_tensor(len(batch))))
