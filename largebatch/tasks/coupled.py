"""Tasks whose loss ties the samples of a step together."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from largebatch.tasks.task import Atom


@runtime_checkable
class Coupled(Protocol):
    """What a task brings besides, whose loss of a sample hangs on the others of its step.

    Its loss is a function of outputs, of which each sample has its own. Whoever trains takes all
    passes of a step for their outputs, has the ranks work out the loss of all of them and its
    gradient with respect to these, and goes back through each pass with that. So neither the passes
    nor the ranks that a step is divided among change it.
    """

    @property
    def tied(self) -> Atom:
        """How many samples in a row of a step are tied together; a size of 0 means all of them."""
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
            outputs: (n, ...), this rank's of them; n may be 0.
            alone: whether they are all; else every rank calls it, with its own.
        """
        ...
