"""Squared gradients of the norms' weights and biases, ghost by ghost, without an extra pass."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from largebatch._ops import accumulate_dtype
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
        like = next(self._norms[0].parameters())
        self._like = torch.zeros(0, dtype=accumulate_dtype(like.dtype), device=like.device)
        self._channels = torch.tensor([n.num_features for n in self._norms], device=like.device)
        learns = [
            [p is not None and p.requires_grad for p in (norm.weight, norm.bias)]
            for norm in self._norms
        ]
        self._learns: Tensor | None = None  # (2, 1, channels of all norms)
        if not all(all(each) for each in learns):
            row = torch.tensor(learns, dtype=torch.float64, device=like.device).T.unsqueeze(1)
            self._learns = row.repeat_interleave(self._channels, 2)

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
        # All norms side by side: a few operations for all of them.
        gradients = self._side_by_side().double()
        if self._learns is not None:
            gradients = gradients * self._learns
        parts = self._by_norm(gradients.square().sum((0, 1)))
        message = torch.cat([gradients.sum(1).flatten(), parts])
        work = self._engine.sum(message)
        if work is not None:
            work.wait()
        count = len(parts)
        whole = self._by_norm(message[:-count].view(2, -1).square().sum(0))
        parts, scale = message[-count:], self._engine.scale_now()
        if scale is None:
            return whole, parts
        square = scale.double().square().to(whole.device)
        return whole / square, parts / square

    def _side_by_side(self) -> Tensor:
        """Return the gradients by every ghost, (2, ghosts, channels of all norms)."""
        found, self._found = self._found, []
        usual = Counter(map(len, found)).most_common(1)[0][0]
        if not usual:
            return self._like.new_zeros(2, 1, sum(norm.num_features for norm in self._norms))
        others = [place for place, each in enumerate(found) if len(each) != usual]
        if others:
            model = next(each for each in found if len(each) == usual)
            for place in others:
                size = self._norms[place].num_features
                found[place] = [self._like.new_zeros(2, each.shape[1], size) for each in model]
        passes = [torch.cat(of_all, 2) for of_all in zip(*found, strict=True)]
        return passes[0] if usual == 1 else torch.cat(passes, 1)

    def _by_norm(self, row: Tensor) -> Tensor:
        """Return the sums of a row over each norm's channels."""
        return torch.segment_reduce(row, "sum", lengths=self._channels, unsafe=True)
