"""The matrix of logits of a contrastive loss, tile by tile: sums, and the gradients from them.

A side is one of the two sets of embeddings; an anchor is a row whose loss is computed. With rows
divided by the root of the temperature, logits are inner products, and the gradient by such rows is
``weights @ columns``. On one rank a tile serves its rows and its columns as anchors, so only the
upper triangle of a symmetric matrix is visited. Nothing of the size of the matrix is kept: the
backward pass computes every tile again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Kind:
    """A kind of contrastive loss: which sides are compared, and what is summed over the logits.

    Attributes:
        meets: pairs (own side, side of any rank) whose logits an anchor is compared to.
        once: the pairs of sides on one rank, each unordered pair once.
        pairwise: every logit is a decision of its own (sigmoid), not one choice a row (softmax).
    """

    meets: tuple[tuple[int, int], ...]
    once: tuple[tuple[int, int], ...]
    pairwise: bool = False


KINDS = {
    "ntxent": Kind(meets=((0, 0), (0, 1), (1, 0), (1, 1)), once=((0, 0), (0, 1), (1, 1))),
    "clip": Kind(meets=((0, 1), (1, 0)), once=((0, 1),)),
    "siglip": Kind(meets=((0, 1), (1, 0)), once=((0, 1),), pairwise=True),
}


@dataclass(frozen=True)
class Side:
    """Rows scaled by ``factor``, (n, d): read a span at a time, in the factor's type."""

    z: Tensor
    factor: Tensor

    def __getitem__(self, span: slice) -> Tensor:
        return self.z[span].to(self.factor.dtype) * self.factor[span, None]

    def spans(self, tile: int, start: int = 0) -> Iterator[slice]:
        """Yield the spans of ``tile`` rows from row ``start`` on."""
        count = self.z.shape[0]
        for first in range(start, count, tile):
            yield slice(first, min(first + tile, count))


Sides = tuple[Side, Side]


class Tile(NamedTuple):
    """Rows of own side ``p`` against columns of side ``q``.

    Attributes:
        both: whether the columns are anchors of this rank too, whose sums this tile adds to.
        diagonal: whether rows and columns are the same, so that an anchor is compared to itself.
        pairs: whether rows and columns are the two sides of the same pairs.
    """

    p: int
    rows: slice
    x: Tensor
    q: int
    columns: slice
    y: Tensor
    both: bool = False
    diagonal: bool = False
    pairs: bool = False


def own_tiles(kind: Kind, sides: Sides, tile: int) -> Iterator[Tile]:
    """Yield the tiles of this rank's anchors against each other."""
    for p, q in kind.once:
        for rows in sides[p].spans(tile):
            x = sides[p][rows]
            for columns in sides[q].spans(tile, rows.start if p == q else 0):
                same = rows == columns
                diagonal = same and p == q
                y = x if diagonal else sides[q][columns]
                yield Tile(p, rows, x, q, columns, y, not diagonal, diagonal, same and p != q)


def other_tiles(kind: Kind, sides: Sides, others: Sides, tile: int) -> Iterator[Tile]:
    """Yield the tiles of this rank's anchors against other ranks' embeddings."""
    for p, q in kind.meets:
        for rows in sides[p].spans(tile):
            x = sides[p][rows]
            for columns in others[q].spans(tile):
                yield Tile(p, rows, x, q, columns, others[q][columns])


class Scratch:
    """Two tiles of memory that every tile of a pass uses in turn."""

    def __init__(self, tile: int, like: Tensor) -> None:
        self._memory = like.new_empty(2, tile * tile)

    def logits(self, tile: Tile) -> Tensor:
        """Return the tile's logits x yᵀ; an anchor's logit with itself is minus infinity."""
        s = torch.mm(tile.x, tile.y.t(), out=self._shaped(0, tile))
        if tile.diagonal:
            s.fill_diagonal_(-torch.inf)
        return s

    def second(self, tile: Tile) -> Tensor:
        """Return the second buffer, in the tile's shape."""
        return self._shaped(1, tile)

    def _shaped(self, number: int, tile: Tile) -> Tensor:
        shape = tile.x.shape[0], tile.y.shape[0]
        return self._memory[number, : shape[0] * shape[1]].view(shape)


class LogSumExp:
    """Log-sum-exp of the rows, (n,), by a running maximum (Milakov, Gimelshein 2018)."""

    def __init__(self, count: int, like: Tensor) -> None:
        # Finite, so that minus infinity less the maximum is not NaN.
        self.largest = like.new_full((count,), torch.finfo(like.dtype).min)
        self.total = like.new_zeros(count)

    def add(self, s: Tensor, span: slice, dim: int, memory: Tensor) -> None:
        """Add the logits ``s`` of the anchors in ``span``, which lie along the other dimension."""
        before = self.largest[span]
        largest = torch.maximum(before, s.amax(dim))
        part = torch.sub(s, largest.unsqueeze(dim), out=memory).exp_().sum(dim)
        self.total[span] = self.total[span] * (before - largest).exp_() + part
        self.largest[span] = largest

    def value(self) -> Tensor:
        """Return the logarithms."""
        return self.largest + self.total.log()


class Sums:
    """The sums of the forward pass over the tiles of this rank's anchors."""

    def __init__(self, kind: Kind, sides: Sides, bias: Tensor, tile: int) -> None:
        self.kind, self.sides, self.bias, self.tile = kind, sides, bias, tile
        self.scratch = Scratch(tile, bias)
        counts = [side.z.shape[0] for side in sides]
        self._anchors = [LogSumExp(count, bias) for count in counts]
        self._decisions = bias.new_zeros(counts[0])

    def add(self, tile: Tile) -> None:
        """Add a tile."""
        if self.kind.pairwise and tile.p == 1:  # a decision is the loss of the first side's row
            return
        s = self.scratch.logits(tile)
        if self.kind.pairwise:
            s.add_(self.bias).neg_()
            if tile.pairs:
                s.diagonal().neg_()
            self._decisions[tile.rows] -= F.logsigmoid(s).sum(1)
            return
        memory = self.scratch.second(tile)
        self._anchors[tile.p].add(s, tile.rows, 1, memory)
        if tile.both:
            self._anchors[tile.q].add(s, tile.columns, 0, s)

    def values(self) -> tuple[Tensor, Tensor]:
        """Return the pairs' losses, (n,), and the log-sum-exps that gradients need, (2, n)."""
        logarithms = torch.stack([anchors.value() for anchors in self._anchors])
        if self.kind.pairwise:
            return self._decisions, logarithms
        values = logarithms.mean(0)
        for rows in self.sides[0].spans(self.tile):
            values[rows] -= (self.sides[0][rows] * self.sides[1][rows]).sum(1)
        return values, logarithms


class Gradients:
    """The sums of the backward pass: gradients by the rows of both sides, and by the bias.

    Args:
        logarithms: (2, n) log-sum-exps from :meth:`Sums.values`.
        scale: 0-d, the gradient of this rank's loss.
    """

    def __init__(
        self,
        kind: Kind,
        sides: Sides,
        bias: Tensor,
        tile: int,
        logarithms: Tensor,
        scale: Tensor,
    ) -> None:
        self.kind, self.sides, self.bias, self.tile = kind, sides, bias, tile
        self.logarithms, self.scale = logarithms, scale
        self.scratch = Scratch(tile, bias)
        self._rows = [bias.new_zeros(side.z.shape) for side in sides]
        self.of_bias = bias.new_zeros(())

    def add(self, tile: Tile) -> None:
        """Add a tile of :func:`own_tiles`."""
        s = self.scratch.logits(tile)
        if self.kind.pairwise:
            s.add_(self.bias)
            if tile.pairs:
                s.diagonal().neg_()
            weights = s.sigmoid_().mul_(self.scale)
            if tile.pairs:
                weights.diagonal().neg_()
            self.of_bias += weights.sum()
        else:
            rows = self.logarithms[tile.p, tile.rows, None]
            columns = self.logarithms[tile.q, None, tile.columns]
            weights = torch.sub(s, rows, out=self.scratch.second(tile)).exp_()
            weights.add_(s.sub_(columns).exp_()).mul_(self.scale / 2)
        self._rows[tile.p][tile.rows].addmm_(weights, tile.y)
        if tile.both:
            self._rows[tile.q][tile.columns].addmm_(weights.t(), tile.x)

    def add_others(self, tile: Tile, logarithms: Tensor, scales: Tensor) -> None:
        """Add a tile of :func:`other_tiles`, whose columns have these logarithms and scales."""
        s = self.scratch.logits(tile)
        theirs = scales[None, tile.columns]
        if self.kind.pairwise:
            weights = s.add_(self.bias).sigmoid_().mul_(self.scale if tile.p == 0 else theirs)
            if tile.p == 0:
                self.of_bias += weights.sum()
        else:
            rows = self.logarithms[tile.p, tile.rows, None]
            columns = logarithms[tile.q, None, tile.columns]
            weights = torch.sub(s, rows, out=self.scratch.second(tile)).exp_().mul_(self.scale / 2)
            weights.addcmul_(s.sub_(columns).exp_(), theirs / 2)
        self._rows[tile.p][tile.rows].addmm_(weights, tile.y)

    def values(self) -> list[Tensor]:
        """Return the gradients by both sides' rows, (n, d) each; call this once."""
        if not self.kind.pairwise:  # each pair's own logit stands in both of its anchors' losses
            a, b = self.sides
            for span in a.spans(self.tile):
                self._rows[0][span].addcmul_(b[span], self.scale, value=-1)
                self._rows[1][span].addcmul_(a[span], self.scale, value=-1)
        return self._rows
