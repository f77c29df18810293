"""Contrastive learning: identify the two views of an image among the views of other images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch.data import ImageBatch, ViewBatch
from largebatch.models import Projected
from largebatch.nn import contrastive_loss, ghost_rows
from largebatch.tasks.config import TaskConfig
from largebatch.tasks.figure import Figure
from largebatch.tasks.registry import tasks
from largebatch.tasks.task import Atom, Task

FEWEST = 2  # pairs: one alone has nothing to be told from


@dataclass
class ContrastiveConfig(TaskConfig):
    """Contrastive learning with two views of each image (SimCLR)."""

    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "data": {"name": "digits", "augment": "views"},
        "evaluate": {"also": [{"name": "knn"}]},
    }

    temperature: float = 0.5
    """What cosines are divided by (SimCLR: 0.5 for CIFAR-10, 0.1 for ImageNet)."""

    negatives: int | None = None
    """Images in a row that are told from one another; unset: all of the step, on all ranks."""

    hidden: int | None = None
    """Width of the projection head's hidden layer; unset: as many as the encoder's features."""

    projection: int = 128
    """Numbers that the head makes of an image."""

    def check(self) -> None:
        """Refuse what cannot be, naming the key."""
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"task.temperature={self.temperature}: above 0")
        if self.negatives is not None and self.negatives < FEWEST:
            raise UserError(
                f"task.negatives={self.negatives}: {FEWEST} or more, since one pair alone has"
                " nothing to be told from"
            )
        for name in ("hidden", "projection"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"task.{name}={value}: must be 1 or more")


@tasks.register(
    "contrastive",
    "two views of an image told from those of all others: NT-Xent, k-NN accuracy",
    "Chen et al. 2020, SimCLR",
)
class Contrastive(Task[ViewBatch]):
    """Forward, loss and figures of a step of SimCLR.

    A projection head replaces the model's last linear layer. The loss is NT-Xent: for each view,
    -log softmax of the partner's cosine among all other views of the ghost, with cosines divided by
    the temperature. A pair's loss is the mean over its two views. A ghost is ``negatives``
    consecutive images of the step, or the whole step. The weight is the number of pairs. Validation
    contrasts the views of the validation set in the same way.

    Args:
        views: number of views of each image in the data.

    Raises:
        UserError: ``views`` is not 2.
    """

    config = ContrastiveConfig
    headline = Figure("knn_top1", percent=True)

    def __init__(self, config: ContrastiveConfig, views: int = 1) -> None:
        if views != 2:
            raise UserError(
                f"task.name={config.name}: contrasts two views of an image; set data.augment=views"
            )
        self._config = config

    @property
    def tied(self) -> Atom:
        """The atom of consecutive images that are contrasted with each other; size 0: all."""
        return Atom(self._config.negatives or 0, FEWEST)

    def atom(self) -> Atom:
        """Return the atom of a step: at least two pairs."""
        return Atom(0, FEWEST)

    def complete(self, model: nn.Module) -> nn.Module:
        """Return the model with a projection head in place of its last linear layer."""
        return Projected(model, self._config.hidden, self._config.projection)

    def known(self, name: str) -> Figure:
        """Return the figure of this name; accuracies are in percent."""
        return Figure("top1", percent=True) if name == "top1" else super().known(name)

    def step_weight(self, samples: int) -> float:
        """Return the number of pairs."""
        return float(samples)

    def weight(self, batch: ViewBatch) -> float:
        """Return the number of pairs."""
        return float(len(batch))

    def train(self, model: nn.Module, batch: ViewBatch) -> tuple[Tensor, Tensor]:
        """Return the loss sum with gradient of a batch by itself, and ``[loss, pairs]``."""
        return self.couple(self.embed(model, batch), alone=True)

    def evaluate(self, model: nn.Module, batch: ViewBatch) -> Tensor:
        """Return ``[loss, pairs]`` of a batch by itself."""
        return self.train(model, batch)[1]

    def embed(self, model: nn.Module, batch: ViewBatch) -> Tensor:
        """Return the projections of both views of each image: (n, 2, projection)."""
        with ghost_rows(2):
            projections: Tensor = model(batch.views.flatten(0, 1))
        # At least float32: the loss is of differences between cosines.
        wide = projections if projections.dtype == torch.float64 else projections.float()
        return wide.unflatten(0, (-1, 2))

    def no_outputs(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return the projections of no image."""
        return torch.zeros(0, 2, self._config.projection, dtype=dtype, device=device)

    def couple(self, outputs: Tensor, alone: bool) -> tuple[Tensor, Tensor]:
        """Return the summed NT-Xent of this rank's pairs in a ghost, and ``[loss, pairs]``."""
        group: Any = "alone" if alone else None
        first, second = outputs.unbind(1)
        loss = contrastive_loss(first, second, self._config.temperature, group)
        return loss, torch.stack((loss.detach(), loss.new_full((), len(outputs))))

    def features(self, model: nn.Module, batch: ImageBatch) -> Tensor:
        """Return the encoder's features of plain images: (n, features)."""
        found: Tensor = model(batch.inputs, project=False)
        return found.flatten(1)
