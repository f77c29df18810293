"""Squared gradients of the norms' weights and biases, ghost by ghost, without an extra pass."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.nn import observable_norms


class GhostSquares:
    """Sums, over a step, the squared norms of each ghost's part of the norms' gradients.

    All ghosts count, on any ranks and under any engine: each rank observes its own passes, and the
    ranks sum one row of numbers. Passes whose running statistics are restored do not count: idle
    passes, SAM's second pass, and passes of other instruments. A norm that runs more than once in a
    pass is left out, because its ghosts are then not separate.

    Attributes:
        names: names of the observed norms.

    Args:
        engine: the run's engine.
    """

    def __init__(self, model: nn.Module, engine: Any) -> None:
        found = observable_norms(model)
        self.names = list(found)
        self._norms, self._engine = list(found.values()), engine
        self._found: list[list[Tensor]] = []
        learns = [
            [p is not None and p.requires_grad for p in (norm.weight, norm.bias)]
            for norm in self._norms
        ]
        self._partial = not all(all(each) for each in learns)
        self._learns = torch.tensor(learns, dtype=torch.float64).T.unsqueeze(1)  # (2, 1, norms)

    def open(self) -> None:
        """Start observing passes; forget earlier ones."""
        self._found = [[] for _ in self._norms]
        for norm, found in zip(self._norms, self._found, strict=True):
            norm.gradient_observer = found.append

    def take(self) -> tuple[Tensor, Tensor]:
        """Stop observing; return the squared norms of the whole, and the sum over ghosts.

        Both are (norms,) float64, summed over ranks. Every rank must call this.
        """
        for norm in self._norms:
            norm.gradient_observer = None
        channels = [norm.num_features for norm in self._norms]
        device = next(self._norms[0].parameters()).device
        if self._learns.device != device:
            self._learns = self._learns.to(device, non_blocking=True)
        counts = [sum(each.shape[1] for each in found) for found in self._found]
        usual = Counter(counts).most_common(1)[0][0]
        each = [
            torch.cat(found, 1) if count == usual and usual else self._nothing(found, size, usual)
            for found, count, size in zip(self._found, counts, channels, strict=True)
        ]
        self._found = []
        # All norms side by side: a few operations for all of them.
        gradients = torch.cat([g.to(device) for g in each], 2).double()
        if self._partial:
            repeats = torch.tensor(channels)
            gradients = gradients * self._learns.repeat_interleave(repeats, 2)
        squares = gradients.square().sum((0, 1)).split(channels)
        parts = torch.stack([of_norm.sum() for of_norm in squares])
        message = torch.cat([gradients.sum(1).flatten(), parts])
        work = self._engine.sum(message)
        if work is not None:
            work.wait()
        whole = message[: -len(parts)].view(2, -1).square().sum(0).split(channels)
        result = torch.stack([of_norm.sum() for of_norm in whole]), message[-len(parts) :]
        scale = self._engine.scale_now()
        if scale is None:
            return result
        square = scale.double().square().to(device)
        return result[0] / square, result[1] / square

    def _nothing(self, found: list[Tensor], size: int, ghosts: int) -> Tensor:
        like = found[0] if found else next(self._norms[0].parameters())
        return like.new_zeros(2, max(ghosts, 1), size)
