"""All-reduce by an all-gather: every rank adds the parts itself, in the order of the ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from largebatch._ops import sum_shards
from largebatch.distributed.algorithms import Algorithms
from largebatch.distributed.contiguous import stretch
from largebatch.distributed.pending import Pending
from largebatch.distributed.statistics import record


def start_gather(
    at: Algorithms, tensor: Tensor, chunks: int, *, mean: bool, squares: Tensor | None
) -> dist.Work:
    """Reduce ``tensor``; the arguments are those of :meth:`Algorithms.start_torus`."""
    whole = stretch(tensor)
    parts = [torch.empty_like(whole) for _ in range(at.world_size)]
    at.flat.allgather([parts], [whole]).wait()
    record("gather", calls=1, steps=at.world_size - 1, bytes=(at.world_size - 1) * whole.nbytes)
    divisor = at.world_size if mean else 1
    found = sum_shards(parts, whole, divisor=divisor, squares=squares is not None)
    if squares is not None and at.rank == 0:
        squares += found
    if whole is not tensor:
        tensor.copy_(whole)
    done = Pending([tensor])
    done.succeed()
    return done
