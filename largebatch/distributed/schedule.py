"""Which face of the torus schedule serves: C++ where it can be compiled, else Python."""

from __future__ import annotations

import torch
import torch.distributed as dist

from largebatch.distributed.topology import Topology
from largebatch.distributed.torus import Torus


def make_torus(
    topology: Topology,
    rank: int,
    row: dist.ProcessGroup,
    column: dist.ProcessGroup | None,
    device: torch.device,
) -> Torus:
    """Return the schedule's best face; :class:`Torus` explains the arguments."""
    return Torus(topology, rank, row, column, device)
