"""How the ranks of a contrastive loss see each other's embeddings: gathered, or round a ring.

A rank sends its own embeddings and, before the backward pass, three numbers a pair. From the other
ranks' numbers each rank computes the gradient that its embeddings get from the other ranks' losses.
With n pairs of d numbers on each of W ranks, a rank sends

| exchange | forward     | backward                  | holds of others |
|----------|-------------|---------------------------|-----------------|
| gather   | 2 (W-1) n d | 3 (W-1) n                 | 2 (W-1) n d     |
| ring     | 2 (W-1) n d | 2 (W-1) n d + 3 (W-1) n   | 4 n d           |

numbers, and seven numbers of eight bytes each to every other rank before the forward pass. Gathers
are padded to the rank with most pairs; the ring sends rows without padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from largebatch._errors import UserError
from largebatch.nn.over_ranks import gather

Embeddings = tuple[Tensor, Tensor, slice]
"""Both sides of some ranks, and where these lie among the pairs of all."""


class Peers:
    """The ranks whose embeddings are contrasted.

    Args:
        group: process group of these ranks, None for this rank alone.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group
        self.size = 1 if group is None else dist.get_world_size(group)
        self.rank = 0 if group is None else dist.get_rank(group)
        if self.rank < 0:
            raise UserError("contrastive_loss: this rank is not in group: only its ranks call it")

    def numbers(self, own: list[float], device: torch.device) -> list[list[float]]:
        """Return the numbers ``own`` of every rank, in rank order."""
        if self.size == 1:
            return [own]
        message = torch.tensor(own, dtype=torch.float64, device=device)
        return self._gathered(message).tolist()

    def of_pairs(self, own: Tensor, counts: list[int]) -> Tensor:
        """Gather (k, n) values of this rank's pairs to (k, N) of all pairs."""
        return own if self.size == 1 else self._rows(own.t(), counts).t()

    def gathered(self, a: Tensor, b: Tensor, counts: list[int]) -> list[Embeddings]:
        """Gather the other ranks' embeddings: one block of lower ranks, one of higher ranks."""
        if self.size == 1:
            return []
        first, after = sum(counts[: self.rank]), sum(counts[: self.rank + 1])
        every_a, every_b = self._rows(a, counts), self._rows(b, counts)
        spans = (slice(0, first), slice(after, sum(counts)))
        return [(every_a[span], every_b[span], span) for span in spans if span.start < span.stop]

    def ring(self, a: Tensor, b: Tensor, counts: list[int]) -> Iterator[Embeddings]:
        """Yield the other ranks' embeddings rank by rank, while receiving the next."""
        held: tuple[Tensor, ...] = (a.contiguous(), b.contiguous())
        for step in range(1, self.size):
            owner = (self.rank - step) % self.size
            coming = held[0].new_empty((2, counts[owner], a.shape[1])).unbind()
            works = self._pass_on(held, coming)
            if step > 1:
                yield self._block(held, counts, owner + 1)
            for work in works:
                work.wait()
            held = coming
        yield self._block(held, counts, self.rank + 1)

    def _block(self, held: tuple[Tensor, ...], counts: list[int], owner: int) -> Embeddings:
        start = sum(counts[: owner % self.size])
        return held[0], held[1], slice(start, start + held[0].shape[0])

    def _pass_on(self, sent: tuple[Tensor, ...], received: tuple[Tensor, ...]) -> list[Any]:
        """Begin to send to the rank after this one what it lacks, and to receive likewise."""
        group: Any = self.group
        after = dist.get_global_rank(group, (self.rank + 1) % self.size)
        before = dist.get_global_rank(group, (self.rank - 1) % self.size)
        operations = [
            *(dist.P2POp(dist.isend, tensor, after, group) for tensor in sent if tensor.numel()),
            *(
                dist.P2POp(dist.irecv, tensor, before, group)
                for tensor in received
                if tensor.numel()
            ),
        ]
        return list(dist.batch_isend_irecv(operations)) if operations else []

    def _rows(self, own: Tensor, counts: list[int]) -> Tensor:
        """Return the rows of all ranks, one rank after the other."""
        most = max(counts)
        if own.shape[0] < most:
            own = torch.cat((own, own.new_zeros((most - own.shape[0], own.shape[1]))))
        parts = self._gathered(own)
        if min(counts) == most:
            return parts.flatten(0, 1)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def _gathered(self, own: Tensor) -> Tensor:
        group: Any = self.group
        return gather(own.reshape(-1), group.group_name, self.size).view(self.size, *own.shape)
