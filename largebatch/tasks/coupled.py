"""Tasks whose loss ties the samples of a step together."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from largebatch.tasks.task import Atom


@runtime_checkable
class Coupled(Protocol):
    """The methods of a task in which a sample's loss depends on other samples of the step.

    The loss is a function of the outputs of all samples. The trainer first runs all passes of a
    step for their outputs. Then the ranks compute the loss of all outputs and its gradient by them.
    Each pass is then differentiated with this gradient. So the division of a step into passes and
    ranks does not change the loss.
    """

    @property
    def tied(self) -> Atom:
        """The atom of consecutive samples of a step that are tied together; size 0 means all."""
        ...

    def embed(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the outputs of a batch, (n, ...), float32 at least."""
        ...

    def no_outputs(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return the outputs of no sample, (0, ...)."""
        ...

    def couple(self, outputs: Tensor, alone: bool) -> tuple[Tensor, Tensor]:
        """Return the loss sum of samples that are tied together, and ``[loss, *figures, weight]``.

        Args:
            outputs: (n, ...), this rank's outputs; n may be 0.
            alone: whether these are all outputs. Otherwise every rank must call this with its own.
        """
        ...
