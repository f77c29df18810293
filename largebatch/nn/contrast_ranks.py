"""How the ranks of a contrastive loss see each other's embeddings: gathered, or round a ring.

A rank sends nothing but its own embeddings and, before the backward pass, three numbers a pair:
its share of the others' gradients it works out itself from theirs. With n pairs of d numbers on each
of W ranks, a rank sends

| exchange | forward           | backward                         | holds of others |
|----------|-------------------|----------------------------------|-----------------|
| gather   | 2 (W-1) n d       | 3 (W-1) n                        | 2 (W-1) n d     |
| ring     | 2 (W-1) n d       | 2 (W-1) n d + 3 (W-1) n          | 4 n d           |

numbers, and six more of eight bytes to each in the forward pass. Gathers are padded to the rank
that has most; the ring sends rows as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from largebatch._errors import UserError

GATHERED = 2**28
"""Bytes of others' embeddings, from which on they go round a ring unless the caller chooses."""

Embeddings = tuple[Tensor, Tensor, slice]
"""Both sides of some ranks, and where these lie among all ranks' pairs."""


class Ranks:
    """The ranks whose embeddings are contrasted.

    Args:
        group: their process group, None for this rank alone.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group
        self.size = 1 if group is None else dist.get_world_size(group)
        self.rank = 0 if group is None else dist.get_rank(group)
        if self.rank < 0:
            raise UserError("contrastive_loss: this rank is not in group: only its ranks call it")

    def rows_of(self, numbers: list[float], device: torch.device) -> list[list[float]]:
        """Return the numbers that each rank gives."""
        if self.size == 1:
            return [numbers]
        own = torch.tensor(numbers, dtype=torch.float64, device=device)
        return self._gathered(own).tolist()

    def all_of(self, own: Tensor, counts: list[int]) -> Tensor:
        """Return what all ranks have along the last dimension, one after the other."""
        if self.size == 1:
            return own
        most = max(counts)
        padded = own.new_zeros((*own.shape[:-1], most))
        padded[..., : own.shape[-1]] = own
        parts = self._gathered(padded).unbind()
        return torch.cat([part[..., :n] for part, n in zip(parts, counts, strict=True)], -1)

    def gathered(self, a: Tensor, b: Tensor, counts: list[int]) -> list[Embeddings]:
        """Return the others' embeddings: those of the ranks before, and of the ranks after."""
        first, after = sum(counts[: self.rank]), sum(counts[: self.rank + 1])
        every = [self._rows(side, counts) for side in (a, b)]
        spans = (slice(0, first), slice(after, sum(counts)))
        return [(every[0][s], every[1][s], s) for s in spans if s.stop > s.start]

    def ring(self, a: Tensor, b: Tensor, counts: list[int]) -> Iterator[Embeddings]:
        """Yield the others' embeddings rank by rank; the next are under way meanwhile."""
        starts = [sum(counts[:rank]) for rank in range(self.size)]
        held, owner = [a.contiguous(), b.contiguous()], self.rank
        for step in range(1, self.size):
            coming = (self.rank - step) % self.size
            new = [a.new_empty((counts[coming], a.shape[1])) for _ in range(2)]
            works = self._pass_on(held, new)
            if owner != self.rank and counts[owner]:
                yield held[0], held[1], slice(starts[owner], starts[owner] + counts[owner])
            for work in works:
                work.wait()
            held, owner = new, coming
        if owner != self.rank and counts[owner]:
            yield held[0], held[1], slice(starts[owner], starts[owner] + counts[owner])

    def _pass_on(self, sent: list[Tensor], received: list[Tensor]) -> list[Any]:
        """Begin to send to the rank after this one what it lacks, and to receive likewise."""
        group: Any = self.group
        after = dist.get_global_rank(group, (self.rank + 1) % self.size)
        before = dist.get_global_rank(group, (self.rank - 1) % self.size)
        ops = [dist.P2POp(dist.isend, t, after, group) for t in sent if t.numel()]
        ops += [dist.P2POp(dist.irecv, t, before, group) for t in received if t.numel()]
        return list(dist.batch_isend_irecv(ops)) if ops else []

    def _rows(self, own: Tensor, counts: list[int]) -> Tensor:
        most = max(counts)
        if own.shape[0] < most:
            own = torch.cat((own, own.new_zeros((most - own.shape[0], own.shape[1]))))
        gathered = self._gathered(own)
        if min(counts) == most:
            return gathered.flatten(0, 1)
        return torch.cat([part[:n] for part, n in zip(gathered, counts, strict=True)])

    def _gathered(self, own: Tensor) -> Tensor:
        result = own.new_empty(self.size * own.numel())
        dist.all_gather_into_tensor(result, own.reshape(-1), group=self.group)
        return result.view(self.size, *own.shape)
