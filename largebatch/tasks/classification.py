"""Classification: cross-entropy over classes, with label smoothing and mixed targets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from largebatch._errors import UserError
from largebatch.data import ImageBatch
from largebatch.models import as_before, try_images, try_training
from largebatch.nn import hidden_mixing
from largebatch.tasks.config import TaskConfig
from largebatch.tasks.figure import Figure
from largebatch.tasks.registry import tasks
from largebatch.tasks.task import Task


@dataclass
class ClassificationConfig(TaskConfig):
    """Cross-entropy over classes."""

    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes, from 0 to below 1."""

    def check(self) -> None:
        """Refuse what cannot be, naming the key."""
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"task.label_smoothing={self.label_smoothing}: from 0 to below 1")


@tasks.register("classification", "cross-entropy over classes, top-1 and top-5")
class Classification(Task[ImageBatch]):
    """Forward, loss and figures of a classification step.

    The weight of a step is its number of images. Label smoothing is ``y (1 - s) + s / K`` (Szegedy
    et al. 2016, section 7). With mixed targets the loss is the convex combination of two
    cross-entropies (Zhang et al. 2018, "mixup"). Hidden states may be mixed in the forward pass.

    Args:
        num_classes: K; top-5 is a figure if K exceeds 10.
    """

    config = ClassificationConfig
    headline = Figure("top1", percent=True)

    def __init__(self, config: ClassificationConfig, num_classes: int) -> None:
        self.smoothing = config.label_smoothing
        self.num_classes = num_classes
        self.figures = ("top1", "top5") if num_classes > 10 else ("top1",)

    def step_weight(self, samples: int) -> float:
        """Return the number of images."""
        return float(samples)

    def weight(self, batch: ImageBatch) -> float:
        """Return the number of images."""
        return float(len(batch))

    def known(self, name: str) -> Figure:
        """Return the figure of this name; top-5 is in percent as well."""
        return Figure("top5", percent=True) if name == "top5" else super().known(name)

    def try_model(self, model: nn.Module, name: str, batch: ImageBatch, training: bool) -> None:
        """Try blank images of the batch's shape."""
        fit = (name, self.num_classes, tuple(batch.inputs.shape[1:]))
        with as_before(model):
            try_images(model, *fit)
            if training:
                try_training(model, *fit)

    def train(self, model: nn.Module, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        """Return (loss sum with gradient, the batch's sums ``[loss, top1, ..., weight]``)."""
        if batch.mixed is None:
            logits = self._wide(model(batch.inputs))
            total = self._loss(logits, batch.targets, "sum")
        else:
            with hidden_mixing(batch.mixed.rows, batch.mixed.hidden):
                logits = self._wide(model(batch.inputs))
            own = self._loss(logits, batch.targets, "none")
            share = batch.mixed.weight.to(own.dtype)
            total = (
                share * own + (1 - share) * self._loss(logits, batch.mixed.partners, "none")
            ).sum()
        return total, self._sums(total.detach(), logits, batch.targets)

    def evaluate(self, model: nn.Module, batch: ImageBatch) -> Tensor:
        """Return the batch's sums ``[loss, top1, ..., weight]``, without smoothing."""
        return self.score(self.outputs(model, batch), batch)

    def outputs(self, model: nn.Module, batch: ImageBatch) -> Tensor:
        """Return (N, K) log-probabilities, for ensembles to average."""
        return self._wide(model(batch.inputs)).log_softmax(1)

    def score(self, log_probabilities: Tensor, batch: ImageBatch) -> Tensor:
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
        if "top5" in self.figures:
            right.append((logits.topk(5, dim=1).indices == targets[:, None]).sum())
        weight = _constant(float(len(targets)), total.dtype, total.device)
        return torch.stack((total, *right, weight))  # in the loss's type: counts are exact in it


@lru_cache(maxsize=16)
def _constant(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((), value, dtype=dtype, device=device)
