"""Passes that are none of the run's leave its memory alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from largebatch.data import TokenBatch
from largebatch.tasks import StreamRows, Task
from largebatch.train.config import PrecisionConfig
from largebatch.train.micro import largest_micro
from largebatch.train.precision import Precision


class Remembering(Task[Any]):
    """Puts into memory what it is given."""

    def __init__(self) -> None:
        self.memory = StreamRows()

    def carry(self) -> StreamRows:
        return self.memory

    def weight(self, batch: Any) -> float:
        return float(len(batch))

    def train(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        self.memory.put(batch.positions.tolist(), batch.tokens.float())
        loss = model(batch.tokens.float()).sum()
        return loss, torch.stack((loss.detach(), torch.tensor(self.weight(batch))))

    def evaluate(self, model: nn.Module, batch: Any) -> Tensor:
        return self.train(model, batch)[1]


def test_neither_a_trial_nor_the_search_for_a_size_is_remembered() -> None:
    task, model = Remembering(), nn.Linear(3, 1)
    order = np.arange(4)
    batch = TokenBatch(torch.ones(4, 3, dtype=torch.int64), order, order, (4,))
    task.memory.put([7], torch.zeros(1, 3))
    task.try_model(model, "own", batch, training=True)
    precision = Precision(PrecisionConfig(), torch.device("cpu"))
    assert largest_micro(model, task, precision, batch, 1, 64, 10**9) == 64
    assert list(task.memory.rows()) == [7]
