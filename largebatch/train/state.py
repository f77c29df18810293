"""Everything a run needs to continue, gathered into one nested dict and put back."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from largebatch._errors import UserError
from largebatch.distributed import World
from largebatch.nn import load_rank_statistics, merged_running_stats, rank_statistics
from largebatch.train.averages import WeightAverage
from largebatch.train.precision import Precision
from largebatch.train.snapshot import SnapshotEnsemble


class RunState:
    """Names the parts of a run that change while it goes on.

    Random numbers are no part: order, augmentation and dropout are functions of the seed and of
    the samples seen.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        average: WeightAverage | None,
        snapshots: SnapshotEnsemble | None,
        world: World,
    ) -> None:
        self.model, self.optimizer, self.precision = model, optimizer, precision
        self.average, self.snapshots, self.world = average, snapshots, world

    def capture(self, position: dict[str, Any]) -> dict[str, Any] | None:
        """Return the whole state on rank 0, None on the others; every rank must call it.

        Args:
            position: samples seen, steps taken and what else the trainer counts.
        """
        merged = merged_running_stats(self.model)
        ranks = self._gather(rank_statistics(self.model))
        if not self.world.is_main:
            return None
        model = {**self.model.state_dict(), **merged}
        return {
            "position": position,
            "model": model,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict() if self.precision.scaler else None,
            "average": self.average.tensors if self.average else None,
            "snapshots": self.snapshots.members if self.snapshots else None,
            "ranks": ranks,
        }

    def restore(self, state: dict[str, Any]) -> dict[str, Any]:
        """Put ``state`` back on every rank and return its position.

        On as many ranks as the state was captured from, each rank gets its own part of the running
        statistics back bit by bit; on another number all start from the merged ones.
        """
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(
                f"the checkpoint does not fit this model or optimizer: {error}"
            ) from None
        if self.precision.scaler is not None and state["scaler"]:
            self.precision.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            for name, tensor in self.average.tensors.items():
                tensor.copy_(state["average"][name])
        if self.snapshots is not None:
            device = next(self.model.parameters()).device
            self.snapshots.members = [
                {name: tensor.to(device) for name, tensor in member.items()}
                for member in state["snapshots"]
            ]
        ranks = state["ranks"]
        if ranks is not None and len(ranks) == self.world.world_size:
            load_rank_statistics(self.model, ranks[self.world.rank])
        position: dict[str, Any] = state["position"]
        return position

    def _gather(self, own: torch.Tensor | None) -> torch.Tensor | None:
        """Stack every rank's own running statistics on rank 0, (ranks, numbers)."""
        if own is None or self.world.world_size == 1:
            return None
        rows = [torch.empty_like(own) for _ in range(self.world.world_size)]
        dist.gather(own, rows if self.world.is_main else None)
        return torch.stack(rows) if self.world.is_main else None
