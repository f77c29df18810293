"""Snapshot ensembles: average the predictions of the weights at the end of each cosine cycle.

Huang et al. 2017, "Snapshot ensembles: train 1, get M for free": the softmax outputs of the last
members are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.models import swapped_in
from largebatch.nn import merged_running_stats
from largebatch.probes import Instrument, Moment
from largebatch.probes.tensors import check_tensors
from largebatch.schedule import Step
from largebatch.tasks import Votes
from largebatch.train.evaluate import Evaluator, evaluating


class Snapshots(Instrument):
    """Keeps a copy of the weights and buffers at the end of every cycle.

    Attributes:
        members: one dict per cycle: floating-point parameters and (merged) running statistics, by
            name.

    Args:
        ends: samples at which the cycles end.
    """

    name = "snapshots"
    resumes = True

    def __init__(self, model: nn.Module, ends: list[int]) -> None:
        self._model, self.ends = model, ends
        self.members: list[dict[str, Tensor]] = []

    def due(self, step: Step, number: int) -> bool:
        """Return whether a step finishes a cycle."""
        return any(step.start < cycle_end <= step.end for cycle_end in self.ends)

    def measure(self, at: Moment) -> Mapping[str, Tensor]:
        """Add a member; returns no figure."""
        state = {**self._model.state_dict(), **merged_running_stats(self._model)}
        self.members.append({n: t.detach().clone() for n, t in _floating(state).items()})
        return {}

    def sums(self, model: nn.Module, evaluator: Evaluator) -> Tensor:
        """Return this rank's metric sums of the members' averaged probabilities."""
        task = evaluator.task
        assert isinstance(task, Votes)
        total = task.no_sums(evaluator.device)
        with evaluating(model, evaluator.device, evaluator.precision):
            for batch in evaluator.batches():
                votes = []
                for member in self.members:
                    with swapped_in(model, member):
                        votes.append(task.outputs(model, batch))
                # The mean of probabilities, taken in logarithms so that small ones survive.
                mean = torch.stack(votes).logsumexp(0) - torch.tensor(float(len(votes))).log()
                total += task.score(mean, batch)
        return total

    def state(self) -> list[dict[str, Tensor]]:
        """Return the members."""
        return self.members

    def check(self, state: Any) -> None:
        """Require a list of members, each of the model's floating tensors."""
        if not isinstance(state, list):
            raise ValueError(f"{type(state).__name__} is no list of members")
        own = _floating(self._model.state_dict())
        for number, member in enumerate(state):
            try:
                check_tensors(member, own)
            except ValueError as error:
                raise ValueError(f"member {number}: {error}") from None

    def load(self, state: Any) -> None:
        """Restore the members."""
        device = next(self._model.parameters()).device
        self.members = [{n: t.to(device) for n, t in member.items()} for member in state]


def _floating(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {n: t for n, t in state.items() if isinstance(t, Tensor) and t.is_floating_point()}
