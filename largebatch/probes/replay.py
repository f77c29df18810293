"""Repeat a step's passes under the model's present weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from torch import Tensor, nn

Forward: TypeAlias = Callable[[nn.Module, Any], tuple[Tensor, Tensor]]
"""Returns what ``Task.train`` does of a pass: the loss sum, and the sums of the batch."""

Side: TypeAlias = tuple[Callable[[], None], float]
"""What to call before the passes, to change the weights, and the factor of their gradient."""


class Replay(ABC):
    """Repeats the passes of a step with the same samples, ghost batches and dropout masks.

    Running statistics, memory of streams and the step's timings are left unchanged. Gradients are
    overwritten, so a replay exists only from ``stepped`` on, when they are no longer needed. Every
    rank must make the same calls. A gradient takes one exchange of sums, so ranks may have unequal
    shares.

    A ``forward`` is called with the model and a batch for every pass in order, except idle passes
    that only keep step with other ranks.

    Attributes:
        train: the task's training loss under the run's precision, the default ``forward``.
    """

    train: Forward

    @abstractmethod
    def visit(self, forward: Forward) -> Tensor:
        """Run this rank's forward passes without gradients; return the sum of losses, float64."""

    @abstractmethod
    def loss(self) -> Tensor:
        """Return the mean loss over the step's samples on all ranks: 0-d, float64."""

    @abstractmethod
    def gradient(self, forward: Forward | None = None, sides: Sequence[Side] = ()) -> list[Tensor]:
        """Return the gradient of :meth:`loss`, before clipping and decay, without a loss scale.

        One tensor for each parameter that requires a gradient, in the model's order, sharded as the
        engine shards the parameters.

        Args:
            forward: replaces ``train``.
            sides: pairs of weights and factors. The result is the sum of factor x gradient at these
                weights, in one exchange. None: the gradient at the present weights.
        """
