"""Compute an encoder's features of plain images over all ranks, for evaluations of the encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch.processes.agreement import gathered
from largebatch.processes.environment import World

Plain = Callable[[Any], Iterator[Any]]
"""Walks this rank's share of a source's samples as they are, batch by batch."""


class FrozenFeatures:
    """Features and labels of images under the present weights.

    Args:
        task: the run's task; must have a method ``features``, as contrastive learning does.
        source, validation: the training and validation split.
        plain: iterates over a split without augmentation.

    Raises:
        UserError: the task has no ``features``.
    """

    def __init__(self, task: Any, source: Any, validation: Any, plain: Plain, world: World) -> None:
        if not hasattr(task, "features"):
            raise UserError("judges the features of an encoder, and the task makes none")
        self._task, self._plain, self._world = task, plain, world
        self._splits = source, validation
        self.classes = int(source.offers()["num_classes"])

    def of(self, model: nn.Module) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return features (n, d) and labels (n,) of both splits, training first, on every rank.

        Features are at least float32 and are centred: their mean over the training images is 0.
        """
        train, held_out = (self._of(model, split) for split in self._splits)
        mean = train[0].double().mean(0).to(train[0].dtype)
        return (train[0] - mean, train[1]), (held_out[0] - mean, held_out[1])

    def _of(self, model: nn.Module, source: Any) -> tuple[Tensor, Tensor]:
        features, labels = [], []
        for batch in self._plain(source):
            found = self._task.features(model, batch)
            features.append(found if found.dtype == torch.float64 else found.float())
            labels.append(batch.targets)
        return self._everyones(features), self._everyones(labels)

    def _everyones(self, own: list[Tensor]) -> Tensor:
        """Return the rows of all ranks, in the order of the ranks."""
        rows = torch.cat(own) if own else None
        if self._world.world_size == 1:
            assert rows is not None, "a source has samples"
            return rows
        said: list[Any] = gathered(
            None if rows is None else [list(rows.shape), str(rows.dtype)], self._world
        )
        shape, dtype = next(each for each in said if each is not None)
        counts = [0 if each is None else each[0][0] for each in said]
        padded = torch.zeros(
            (max(counts), *shape[1:]),
            dtype=getattr(torch, dtype.removeprefix("torch.")),
            device=self._device(rows),
        )
        if rows is not None:
            padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])

    def _device(self, rows: Tensor | None) -> torch.device:
        if rows is not None:
            return rows.device
        cuda = dist.get_backend() == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
