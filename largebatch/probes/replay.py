"""A step's passes once more, under whatever weights the model has by then."""

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
    """The passes of a step as the run took them: samples, ghosts and draws of dropout are the same.

    Statistics, memory of streams and the times of a step stay as they were. Gradients do not, so
    there is one from ``stepped`` on, when nobody has a use for them. Every rank makes the same
    calls. A gradient is one exchange, of sums, so that shares may be uneven.

    A ``forward`` is called with the model and a batch for every pass in order, but for those that
    only keep step with other ranks.

    Attributes:
        train: of the run's task, under its precision: what ``forward`` is by default.
    """

    train: Forward

    @abstractmethod
    def visit(self, forward: Forward) -> Tensor:
        """Take this rank's passes forward, without gradients; return its sum of losses, float64."""

    @abstractmethod
    def loss(self) -> Tensor:
        """Return the mean loss over the step's samples on all ranks: 0-d, float64."""

    @abstractmethod
    def gradient(self, forward: Forward | None = None, sides: Sequence[Side] = ()) -> list[Tensor]:
        """Return the gradient of :meth:`loss`, before clipping and decay, without a loss scale.

        Of each parameter that takes one, in the model's order, divided as the engine divides it.

        Args:
            forward: in the place of ``train``.
            sides: weights at which to take it, with factors; what is returned is their sum, in one
                exchange. None: where the weights are.
        """
