"""Squared gradients of the norms' weights and biases by ghost: they cost no pass of their own."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.nn import observable_norms


class GhostSquares:
    """Sums, over a step, what every ghost adds to the gradients of the norms.

    All ghosts are seen, on whatever ranks and under whatever engine: each rank observes its own
    passes, and the ranks add up one row of numbers. Passes that are none of the run's (idle ones,
    SAM's second, other instruments') are not seen, since their statistics are put back. A norm that
    a pass goes through more than once is left out: its ghosts are not single there.

    Attributes:
        names: of the norms.

    Args:
        engine: of the run.
    """

    def __init__(self, model: nn.Module, engine: Any) -> None:
        found = observable_norms(model)
        self.names = list(found)
        self._norms, self._engine = list(found.values()), engine
        self._sums: list[list[Tensor]] = []
        self._parts: list[list[Tensor]] = []
        self._ghosts: list[int] = []

    def open(self) -> None:
        """Observe the passes from here on, and forget those before."""
        self._sums, self._parts = [[] for _ in self._norms], [[] for _ in self._norms]
        self._ghosts = [0] * len(self._norms)
        for place, norm in enumerate(self._norms):
            norm.gradient_observer = partial(self._take, place)

    def take(self) -> tuple[Tensor, Tensor]:
        """End the observation; return the squares of the whole and of the ghosts, summed.

        Both (norms,) float64, over all ranks, which must call it alike.
        """
        for norm in self._norms:
            norm.gradient_observer = None
        device = next(self._norms[0].parameters()).device
        rows, parts = [], []
        usual = Counter(self._ghosts).most_common(1)[0][0]
        for place, norm in enumerate(self._norms):
            once = self._ghosts[place] == usual
            sums, squares = (each[place] if once else [] for each in (self._sums, self._parts))
            none = torch.zeros(2, norm.num_features, dtype=torch.float64, device=device)
            rows.append(torch.stack(sums).sum(0) if sums else none)
            parts.append(torch.stack(squares).sum() if squares else none.sum())
        sizes = [row.numel() for row in rows]
        message = torch.cat([*(row.flatten() for row in rows), torch.stack(parts)])
        work = self._engine.sum(message)
        if work is not None:
            work.wait()
        *whole, summed = message.split([*sizes, len(parts)])
        result = torch.stack([row.square().sum() for row in whole]), summed
        scale = self._engine.scale_now()
        if scale is None:
            return result
        square = scale.double().square().to(device)
        return result[0] / square, result[1] / square

    def _take(self, place: int, gradients: Tensor) -> None:
        norm = self._norms[place]
        self._ghosts[place] += gradients.shape[1]
        rows = [
            row.double() if param is not None and param.requires_grad else None
            for row, param in zip(gradients, (norm.weight, norm.bias), strict=True)
        ]
        self._parts[place] += [row.square().sum() for row in rows if row is not None]
        none = torch.zeros(norm.num_features, dtype=torch.float64, device=gradients.device)
        self._sums[place].append(torch.stack([none if r is None else r.sum(0) for r in rows]))
