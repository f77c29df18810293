"""Contrastive learning: two views of an image are to be told from the views of all others."""

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
    """Two views of each image, told from those of the others (SimCLR)."""

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

    The model's last linear layer gives way to a projection head. The loss of a pair is the mean
    over its two views of -log of the share that the partner has in the softmax of cosines, divided
    by the temperature, over all other views of the ghost (NT-Xent); a ghost is ``negatives`` images
    in a row of the step, or all of it. The weight is the number of pairs. Validation contrasts the
    views of the validation set in the same way.

    Args:
        views: that the data have of each image.

    Raises:
        UserError: these are not two.
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
        """The images that are told from one another."""
        return Atom(self._config.negatives or 0, FEWEST)

    def atom(self) -> Atom:
        """Return that no step may have less than two pairs."""
        return Atom(0, FEWEST)

    def complete(self, model: nn.Module) -> nn.Module:
        """Return the model with a projection head for its last linear layer."""
        return Projected(model, self._config.hidden, self._config.projection)

    def known(self, name: str) -> Figure:
        """Return the figure of that name; accuracies are read in percent."""
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
        """Return the NT-Xent of a ghost's pairs on this rank, summed, and ``[loss, pairs]``."""
        group: Any = "alone" if alone else None
        first, second = outputs.unbind(1)
        loss = contrastive_loss(first, second, self._config.temperature, group)
        return loss, torch.stack((loss.detach(), loss.new_full((), len(outputs))))

    def features(self, model: nn.Module, batch: ImageBatch) -> Tensor:
        """Return what the encoder makes of plain images: (n, features)."""
        found: Tensor = model(batch.inputs, project=False)
        return found.flatten(1)
