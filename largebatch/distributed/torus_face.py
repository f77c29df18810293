"""Choose an implementation of the torus schedule: C++ if it can be compiled, else Python."""

from __future__ import annotations

import functools
import warnings
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from largebatch._ops.torus_library import load
from largebatch.distributed.statistics import count_by, record
from largebatch.distributed.topology import Topology
from largebatch.distributed.torus import Torus


class TorusFace(Protocol):
    """Protocol of both implementations; see :class:`Torus`."""

    def all_reduce(
        self,
        flat: Tensor,
        *,
        chunks: int,
        wire: torch.dtype,
        divisor: int = 1,
        squares: Tensor | None = None,
        target: Tensor | None = None,
    ) -> dist.Work: ...

    def close(self) -> bool: ...


class CompiledTorus:
    """The schedule in C++ (``csrc/comm/torus.cpp``), with the arguments of :class:`Torus`."""

    def __init__(
        self,
        topology: Topology,
        rank: int,
        row: dist.ProcessGroup,
        column: dist.ProcessGroup | None,
        device: torch.device,
    ) -> None:
        module, _ = load()
        count_by("torus", module.sent)
        place = topology.place(rank)
        self._torus = module.Torus(
            rank,
            topology.columns,
            topology.rows,
            place.position,
            list(place.row),
            list(place.column),
            row,
            column,
            str(device),
        )

    def all_reduce(
        self,
        flat: Tensor,
        *,
        chunks: int,
        wire: torch.dtype,
        divisor: int = 1,
        squares: Tensor | None = None,
        target: Tensor | None = None,
    ) -> dist.Work:
        """Begin to sum ``flat`` over all ranks in place."""
        record("torus", calls=1)
        work: dist.Work = self._torus.all_reduce(flat, chunks, wire, divisor, squares, target)
        return work

    def close(self) -> bool:
        """Wait for all reductions begun, and end the threads; see :meth:`Torus.close`."""
        ended: bool = self._torus.close()
        return ended


def make_torus(
    topology: Topology,
    rank: int,
    row: dist.ProcessGroup,
    column: dist.ProcessGroup | None,
    device: torch.device,
) -> TorusFace:
    """Return the best implementation of the schedule; arguments as for :class:`Torus`.

    Ranks may have different implementations: both send the same messages and give the same bits.
    """
    module, reason = load()
    if module is not None:
        return CompiledTorus(topology, rank, row, column, device)
    _say_once(reason)
    return Torus(topology, rank, row, column, device)


@functools.cache
def _say_once(reason: str) -> None:
    if reason != "LARGEBATCH_OPS=reference":
        warnings.warn(
            f"the torus all-reduce runs in Python, which is slower ({reason})", stacklevel=4
        )
