"""Snapshot ensembles: the weights at the end of each cosine cycle vote together.

Huang et al. 2017, "Snapshot ensembles: train 1, get M for free": the softmax outputs of the last
members are averaged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from largebatch.tasks import Votes
from largebatch.train.averages import swapped_in
from largebatch.train.evaluate import Evaluator, evaluating


class SnapshotEnsemble:
    """Keeps a copy of the weights and buffers for every cycle that ended.

    Args:
        ends: samples at which the cycles end.
    """

    def __init__(self, ends: list[int]) -> None:
        self.ends = ends
        self.members: list[dict[str, Tensor]] = []

    def due(self, start: int, end: int) -> bool:
        """Whether a step from ``start`` to ``end`` samples finishes a cycle."""
        return any(start < cycle_end <= end for cycle_end in self.ends)

    def add(self, tensors: dict[str, Tensor]) -> None:
        """Take in a member: floating parameters and (merged) running statistics."""
        self.members.append({name: tensor.detach().clone() for name, tensor in tensors.items()})

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
