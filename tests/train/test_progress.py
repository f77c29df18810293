"""What a person reads while a run goes on, by whatever its task calls its figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from largebatch.tasks import Classification, ClassificationConfig, Figure, Task
from largebatch.train.progress import Progress


class Words(Task[Any]):
    """A task judged by its loss, or by a figure that it makes of it."""

    def weight(self, batch: Any) -> float:
        return 1.0

    def train(self, model: Any, batch: Any) -> Any: ...

    def evaluate(self, model: Any, batch: Any) -> Any: ...

    def read(self, sums: Sequence[float]) -> dict[str, float]:
        return {**super().read(sums), "perplexity": 2.0}


class Perplexed(Words):
    headline = Figure("perplexity", "lower")


TRAIN = {"samples": 100, "epoch": 1.234, "loss": 0.51234, "lr": 0.1, "samples_per_second": 1234.5}
VAL = {"samples": 100, "epoch": 1.5, "count": 7, "loss": 0.43219, "weight_norm": 3.0}
IMAGES = {"top1": 0.98765, "top5": 0.99912, "ema_loss": 0.4, "ema_top1": 0.5, "ensemble_top1": 0.25}


@pytest.mark.parametrize(
    ("task", "figures", "train", "val"),
    [
        (Classification(ClassificationConfig(), 100), IMAGES,
         "epoch 1.23  loss 0.5123  top1 98.8%  lr 0.1  1,234/s  ",
         "epoch 1.5  val top1 98.77%  loss 0.4322  top5 99.91%  ema_top1 50.00%  "
         "ensemble_top1 25.00%  1 step not finite"),
        (Words(), {"perplexity": 2.0, "ema_loss": 0.4},
         "epoch 1.23  loss 0.5123  lr 0.1  1,234/s  ",
         "epoch 1.5  val loss 0.4322  ema_loss 0.4000  1 step not finite"),
        (Perplexed(), {"perplexity": 2.0, "ema_perplexity": 3.0},
         "epoch 1.23  loss 0.5123  perplexity 2.0  lr 0.1  1,234/s  ",
         "epoch 1.5  val perplexity 2.00  loss 0.4322  ema_perplexity 3.00  1 step not finite"),
    ],
    ids=["classification", "loss", "perplexity"],
)  # fmt: skip
def test_lines(
    task: Task[Any], figures: dict[str, float], train: str, val: str, capsys: Any
) -> None:
    progress = Progress(task, 1000, 0, shown=True)
    progress.train({**TRAIN, **figures})
    progress.validation({**VAL, **figures, "nonfinite_steps": 1})
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(train) and first.endswith(" left")
    assert second == val


def test_a_figure_of_other_weights_is_read_as_that_of_the_plain_ones() -> None:
    task = Classification(ClassificationConfig(), 100)
    assert task.known("ema_top5") == Figure("ema_top5", percent=True)
    assert task.known("ensemble_loss").better == "lower"
    assert task.known("weight_norm") == Figure("weight_norm")
