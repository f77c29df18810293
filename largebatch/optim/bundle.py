"""How LARS and LAMB group tensors so that one operator call steps many of them.

A layer-wise optimizer needs the norms of each tensor of the model. Such a tensor may be a whole
parameter, a piece of a fused parameter (``split``), or a stretch of a flat or sharded parameter
whose rest is on other ranks. A :class:`Bundle` lists the tensors of one call, whichever they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import is_
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from largebatch._errors import UserError
from largebatch.distributed.sharding import is_sharded
from largebatch.optim.parameters import any_sharded, local
from largebatch.optim.settings import plain
from largebatch.optim.state import Fit


@dataclass(frozen=True)
class Fragment:
    """A stretch of a flat parameter that belongs to one tensor of the model.

    Attributes:
        start, length: place in the flat parameter, in elements.
        tensor: number of the model's tensor, the same on all ranks that hold a part of the tensor.
        ndim: dimensions of the model's tensor, for the optimizer's ``exclude`` rule.
    """

    start: int
    length: int
    tensor: int
    ndim: int


@dataclass(frozen=True)
class Fragments:
    """The layout of a flat parameter: see :meth:`~largebatch.optim.LayerwiseOptimizer.shard`.

    Attributes:
        parts: the fragments on this rank.
        tensors: number of tensors that the ranks hold together.
        group: process group of these ranks; None for all ranks.
    """

    parts: tuple[Fragment, ...]
    tensors: int
    group: Any


@dataclass(frozen=True)
class Piece:
    """One tensor of an operator call: a whole parameter or a piece of one.

    Attributes:
        param: number of the parameter in the bundle.
        number: number of the piece within the parameter.
        start, length: along the parameter's first dimension; None: the whole parameter.
        tensor: row in the table of norms that ranks add up.
        ndim: dimensions of the model's tensor.
    """

    param: int
    number: int
    start: int | None
    length: int
    tensor: int
    ndim: int


@dataclass
class Bundle:
    """The tensors that one operator call steps: all on one device, with the same common settings.

    Attributes:
        groups: the parameter groups of the call, each with its part of ``params``.
        common: the settings that these groups share.
        params: parameters with a gradient.
        pieces: the call's tensors.
        ranks: process groups whose ranks hold parts of the same tensors; empty: all is here.
        tensors: number of rows in the table that these ranks add up.
        rows: the row of each of the call's tensors, on the device.
        settings: (N, 3) float64 on the CPU: rate, weight decay, whether the tensor adapts.
        norms: (N, 3) float64 on the device, as the operators write it.
        absent: stands for the master of a parameter without one.
        fit: remembers that the parameters' states have the right form.
        rules: group settings from which decay and adaptation in ``settings`` were made.
        rates: the last learning rates: one per group, with its number of parameters.
        sharded: whether the parameters are DTensors.
        whole: whether every tensor is a parameter.
    """

    groups: list[tuple[dict[str, Any], list[Tensor]]]
    common: dict[str, Any]
    params: list[Tensor]
    pieces: list[Piece]
    ranks: tuple[Any, ...]
    tensors: int
    rows: Tensor
    settings: Tensor
    norms: Tensor
    absent: Tensor
    fit: Fit
    rules: list[tuple[Any, ...]] = field(default_factory=list)
    rates: list[tuple[float, int]] = field(default_factory=list)
    sharded: bool = False
    whole: bool = True

    def __post_init__(self) -> None:
        self.sharded = any_sharded(self.params)
        self.whole = bool(self.pieces) and all(piece.start is None for piece in self.pieces)

    def holds(self, groups: list[tuple[dict[str, Any], list[Tensor]]]) -> bool:
        """Whether the bundle was made for these parameters."""
        return len(groups) == len(self.groups) and all(
            mine[0] is its[0] and len(mine[1]) == len(its[1]) and all(map(is_, mine[1], its[1]))
            for mine, its in zip(self.groups, groups, strict=True)
        )

    def parts(self, tensors: list[Tensor]) -> list[Tensor]:
        """Cut one tensor per parameter (gradient, moment, master) into the call's pieces."""
        if self.sharded:
            tensors = [local(tensor) for tensor in tensors]
        if self.whole:
            return tensors
        return [
            tensors[piece.param]
            if piece.start is None
            else tensors[piece.param].narrow(0, piece.start, piece.length)
            for piece in self.pieces
        ]

    def add_up(self) -> None:
        """Sum ``norms`` over the ranks: two numbers per tensor, in one message."""
        table = torch.zeros((self.tensors, 2), dtype=torch.float64, device=self.norms.device)
        table.index_add_(0, self.rows, self.norms[:, :2])
        for ranks in self.ranks:
            dist.all_reduce(table, group=ranks)
        self.norms[:, :2] = table[self.rows]


def ranks_of(param: Tensor, fragments: Mapping[Tensor, Fragments]) -> tuple[Any, ...]:
    """Return the process groups whose ranks hold parts of the tensors in ``param``.

    Raises:
        UserError: a DTensor with a partial placement (its values are still to be summed).
    """
    if param in fragments:
        return (fragments[param].group,)
    if not is_sharded(param):
        return ()
    if any(placement.is_partial() for placement in param.placements):
        raise UserError(f"a parameter with placements {param.placements}: shard or replicate it")
    return tuple(
        param.device_mesh.get_group(dim)
        for dim, placement in enumerate(param.placements)
        if placement.is_shard()
    )


def cut(
    groups: list[tuple[dict[str, Any], list[Tensor]]], fragments: Mapping[Tensor, Fragments]
) -> tuple[list[Piece], int]:
    """Return the pieces of the groups' parameters, and the number of tensors that ranks add up."""
    pieces: list[Piece] = []
    tensors = 0
    index = 0
    for group, params in groups:
        for param in params:
            if param in fragments:
                flat = fragments[param]
                pieces += [
                    Piece(index, n, f.start, f.length, tensors + f.tensor, f.ndim)
                    for n, f in enumerate(flat.parts)
                ]
                tensors += flat.tensors
            else:
                count = split_count(group, param)
                length = len(param) // count if param.ndim else 1
                pieces += [
                    Piece(index, n, n * length if count > 1 else None, length, tensors + n, ndim)
                    for n, ndim in enumerate([param.ndim] * count)
                ]
                tensors += count
            index += 1
    return pieces, tensors


def split_count(group: dict[str, Any], param: Tensor) -> int:
    """Return into how many pieces a group's ``split`` cuts a parameter."""
    split = plain(group["split"])
    if split == "rows":
        return max(1, len(param)) if param.ndim > 1 else 1
    return int(split)
