"""Losses that tie samples of a step together (contrastive), computed over all ranks and passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from largebatch.data import Batch
from largebatch.engine import Engine
from largebatch.nn import ghost_sizes
from largebatch.probes import Forward
from largebatch.processes import World
from largebatch.tasks import Coupled
from largebatch.train.feed import Pass, Share, Spans
from largebatch.train.precision import Precision

Placed = tuple[Tensor, NDArray[np.int64]]
"""Outputs of some samples, (n, ...), and the place of each among those that are tied together."""


class Coupling:
    """Computes the loss of outputs on several ranks, ghost by ghost.

    Args:
        alone: whether this rank holds all outputs.
    """

    def __init__(self, task: Any, alone: bool, precision: Precision, device: torch.device) -> None:
        self.task: Coupled = task
        self.embed = precision.wrap(self.task.embed)
        self.weight = task.weight
        self._none = task.no_sums(device)
        self._alone, self._dtype, self._device = alone, precision.dtype, device

    def sums(self, held: Sequence[Placed], samples: int, spans: Spans | None = None) -> Tensor:
        """Return this rank's float64 ``[loss, figures..., weight]``; every rank must call this.

        Args:
            held: this rank's outputs.
            samples: number of samples over all ranks.
            spans: begin and end of each rank's samples, if each rank's samples are contiguous.
        """
        outputs, places = self._joined(held)
        total = self._none
        for rows, alone in self._ghosts(places, samples, spans):
            total = total + self.task.couple(outputs[rows], alone)[1].double()
        return total

    def gradient(
        self, held: Sequence[Placed], samples: int, spans: Spans | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Return the gradients of the loss sum over ranks by each of ``held``, and the sums.

        Every rank must call this.
        """
        outputs, places = self._joined(held)
        found, total = torch.zeros_like(outputs), self._none
        for rows, alone in self._ghosts(places, samples, spans):
            own = outputs[rows].requires_grad_()
            with torch.enable_grad():
                loss, sums = self.task.couple(own, alone)
                found[rows] = torch.autograd.grad(loss, own)[0]
            total = total + sums.double()
        return list(found.split([len(each) for each, _ in held])), total

    def _joined(self, held: Sequence[Placed]) -> Placed:
        if not held:
            return self.task.no_outputs(self._dtype, self._device), np.zeros(0, np.int64)
        outputs = torch.cat([each.detach() for each, _ in held])
        return outputs, np.concatenate([places for _, places in held])

    def _ghosts(
        self, places: NDArray[np.int64], samples: int, spans: Spans | None
    ) -> Iterator[tuple[Tensor, bool]]:
        """Yield this rank's rows of each ghost that it works on, and whether it does so alone.

        A ghost that one rank holds is that rank's; all take part in any other, maybe with none.
        """
        tied = self.task.tied
        ends = np.cumsum(ghost_sizes(samples, tied.size or samples, tied.minimum))
        ghosts = np.searchsorted(ends, places, side="right")
        for ghost, end in enumerate(ends):
            start = ends[ghost - 1] if ghost else 0
            holders = [a < end and b > start for a, b in spans or ()]
            alone = self._alone or sum(holders) == 1
            rows = np.flatnonzero(ghosts == ghost)
            if len(rows) or not alone:
                yield torch.from_numpy(rows).to(self._device), alone


def coupling_of(
    task: Any, world: World, precision: Precision, device: torch.device
) -> Coupling | None:
    """Return the coupling of a task whose loss ties samples together; None for other tasks."""
    if not isinstance(task, Coupled):
        return None
    return Coupling(task, world.world_size == 1, precision, device)


class Walks(Protocol):
    """The methods of the stepper that :func:`tied` needs."""

    engine: Engine

    def forward(self, share: Share, one: Pass, train: Forward | None) -> Any:
        """Run a forward pass as in its step."""

    def frozen(self) -> Any:
        """Leave running statistics and stream memory unchanged inside a ``with`` block."""


def tied(walks: Walks, coupling: Coupling, share: Share, passes: Sequence[Pass]) -> Forward:
    """Run a step's passes for their outputs; return the training function of each pass.

    If no rank has more than one pass, the outputs keep their graph and the pass is not repeated.
    Otherwise each pass runs twice, the first time without a graph and without changes of statistics
    or memory. Both times it draws the same random numbers and normalises alike.
    """
    once = share.most == 1
    whole = nullcontext() if once else walks.engine.evaluating()
    outputs: dict[int, Tensor] = {}
    with torch.set_grad_enabled(once), whole:
        for one in passes:
            with walks.frozen() if one.part.idle or not once else nullcontext():
                outputs[id(one.batch)] = walks.forward(share, one, coupling.embed)
    own = [one.batch for one in passes if not one.part.idle]
    held = [(outputs[id(batch)], batch.positions - share.step.position) for batch in own]
    gradients, total = coupling.gradient(held, share.step.size, share.spans())
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for batch, gradient in zip(own, gradients, strict=True):
        sums = torch.zeros_like(total) if found else total.clone()
        sums[-1] = coupling.weight(batch)
        found[id(batch)] = gradient, sums
    if not once:
        outputs.clear()

    def train(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return a loss whose gradient is the step's, and the sums of the first pass for all."""
        kept = outputs.pop(id(batch), None)
        again = coupling.embed(model, batch) if kept is None else kept
        gradient, sums = found.get(id(batch), (torch.zeros_like(again), total))
        return (again * gradient).sum(), sums

    return train
