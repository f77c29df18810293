"""Classification: cross-entropy over classes, with label smoothing and mixed targets."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from largebatch.data import Batch
from largebatch.tasks.config import TaskConfig


class Classification:
    """Forward, loss and metrics of a classification step.

    The loss is a *sum* over images: the trainer divides by the weight of the whole step, the number
    of images over all ranks, so that uneven shares are exact. Label smoothing is
    ``y (1 - s) + s / K`` (Szegedy et al. 2016, section 7); mixed targets are the convex combination
    of two cross-entropies (Zhang et al. 2018, "mixup").

    Args:
        num_classes: K; top-5 is a metric where it exceeds 10.
    """

    def __init__(self, config: TaskConfig, num_classes: int) -> None:
        self.smoothing = config.label_smoothing
        self.metrics = ("top1", "top5") if num_classes > 10 else ("top1",)

    def weight(self, batch: Batch) -> int:
        """Return what the loss sum is divided by: images."""
        return batch.targets.shape[0]

    def train(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return (loss sum with gradient, the batch's sums ``[loss, top1, ..., weight]``)."""
        logits = self._wide(model(batch.inputs))
        if batch.mixed is None:
            total = self._loss(logits, batch.targets, "sum")
        else:
            own = self._loss(logits, batch.targets, "none")
            share = batch.mixed.weight.to(own.dtype)
            total = (
                share * own + (1 - share) * self._loss(logits, batch.mixed.partners, "none")
            ).sum()
        return total, self._sums(total.detach(), logits, batch.targets)

    def evaluate(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the batch's sums ``[loss, top1, ..., weight]``, without smoothing."""
        return self.score(self.outputs(model, batch), batch)

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return (N, K) log-probabilities, for ensembles to average."""
        return self._wide(model(batch.inputs)).log_softmax(1)

    def score(self, log_probabilities: Tensor, batch: Batch) -> Tensor:
        """Return the batch's sums ``[loss, top1, ..., weight]`` of (N, K) log-probabilities."""
        total = cross_entropy(log_probabilities, batch.targets, reduction="sum")
        return self._sums(total, log_probabilities, batch.targets)

    def _loss(self, logits: Tensor, targets: Tensor, reduction: str) -> Tensor:
        return cross_entropy(logits, targets, reduction=reduction, label_smoothing=self.smoothing)

    def _wide(self, logits: Tensor) -> Tensor:
        """Take the loss in float32 at least: softmax in half precision loses the small classes."""
        return logits if logits.dtype == torch.float64 else logits.float()

    def _sums(self, total: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        right = [(logits.argmax(1) == targets).count_nonzero()]
        if "top5" in self.metrics:
            right.append((logits.topk(5, dim=1).indices == targets[:, None]).sum())
        weight = _constant(float(len(targets)), total.dtype, total.device)
        return torch.stack((total, *right, weight))  # in the loss's type: counts are exact in it


@lru_cache(maxsize=16)
def _constant(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((), value, dtype=dtype, device=device)
