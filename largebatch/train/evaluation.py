"""Evaluations of the weights during a run, which change nothing of the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from largebatch.engine import Engine
from largebatch.models import swapped_in
from largebatch.nn import merged_running_stats
from largebatch.probes import Run
from largebatch.processes import World
from largebatch.processes.agreement import agreed, gathered
from largebatch.processes.lifetime import StopRequest
from largebatch.schedule import Clock, Duration, Every, Step
from largebatch.train.evaluate import Evaluator


@dataclass(frozen=True)
class Evaluation:
    """One of the evaluations of a run.

    Attributes:
        name: prefix of its figures' names in the record; '' for none.
        every: distance between evaluations; there is one at the end of the run too.
        run: returns the figures of a model; called on every rank, the figures of rank 0 count.
    """

    name: str
    every: Duration
    run: Run

    def named(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        """Return figures by their names in the record."""
        head = f"{self.name}_" if self.name else ""
        return {
            f"{head}{key}": value if isinstance(value, (int, list)) else float(value)
            for key, value in figures.items()
        }


class Evaluations:
    """The evaluations of a run, taken in order.

    Args:
        stop: a request to stop on any rank makes all ranks discard the current evaluations.
    """

    def __init__(
        self, each: Sequence[Evaluation], model: nn.Module, world: World, stop: StopRequest,
        clock: Clock,
    ) -> None:  # fmt: skip
        self._each = [(one, Every(one.every, clock)) for one in each]
        self._model, self._world, self._stop = model, world, stop

    def due(self, step: Step, number: int) -> bool:
        """Return whether any evaluation is due after a step."""
        return any(every.due(step, number) for _, every in self._each)

    def run(self, step: Step, number: int, everything: bool) -> dict[str, Any] | None:
        """Run the evaluations that are due; return rank 0's figures on every rank.

        Args:
            everything: run all of them, as at the end of a run.

        Returns:
            The figures; None if a rank was asked to stop before all were complete.
        """
        found: dict[str, Any] = {}
        with swapped_in(self._model, merged_running_stats(self._model)):
            for one, every in self._each:
                if everything or every.due(step, number):
                    found |= one.named(one.run(self._model))
                    if any(gathered(bool(self._stop), self._world)):
                        return None
        figures: dict[str, Any] = agreed(found, self._world)
        return figures


class Validation:
    """Figures of the validation set over all ranks, under the model's weights or others.

    If the evaluator keeps parts of the set apart, the figures include ``loss_of_parts`` and
    ``weight_of_parts``: sums, in the order of the parts.

    Args:
        stop: on a request to stop, a rank ends its passes early and there are no figures.
    """

    def __init__(
        self, evaluator: Evaluator, engine: Engine, world: World, stop: StopRequest | None = None
    ) -> None:
        self._evaluator, self._engine = evaluator, engine
        self._world, self._stop = world, stop

    def __call__(self, model: nn.Module) -> dict[str, Any]:
        """Return the figures of the weights as they are, and ``count``."""
        sums = self._sums(model)
        return {**self._figures(sums), "count": int(max(float(sums[:, -1].sum()), 1.0))}

    def under(self, model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the figures of ``model`` under other weights."""
        with swapped_in(model, weights):
            return self._figures(self._sums(model))

    def of(self, sums: Callable[[], Tensor]) -> dict[str, float]:
        """Return the figures of sums that were computed on this rank's share in another way."""
        with self._engine.evaluating():
            return self._evaluator.task.read(self._over_ranks(sums()).tolist())

    def _sums(self, model: nn.Module) -> Tensor:
        with self._engine.evaluating():
            return self._over_ranks(self._evaluator.sums_of_parts(model, self._stop)).cpu()

    def _figures(self, sums: Tensor) -> dict[str, Any]:
        figures: dict[str, Any] = dict(self._evaluator.task.read(sums.sum(0).tolist()))
        if len(sums) > 1:
            figures["loss_of_parts"] = sums[:, 0].tolist()
            figures["weight_of_parts"] = sums[:, -1].tolist()
        return figures

    def _over_ranks(self, sums: Tensor) -> Tensor:
        if self._world.world_size > 1:
            dist.all_reduce(sums)
        return sums
