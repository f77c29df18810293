"""Check the arguments of a contrastive loss, with the same one-line error on every rank.

A rank that raised an error alone would leave the others waiting for its embeddings. So each rank
first tells the others what it has, or that its arguments are wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch.distributed as dist
from torch import Tensor

from largebatch._errors import UserError
from largebatch.nn.contrast_ranks import Peers
from largebatch.nn.contrast_tiles import KINDS, Kind

ContrastKind = Literal["ntxent", "clip", "siglip"]
Exchange = Literal["gather", "ring"]
Group = dist.ProcessGroup | Literal["alone"] | None

GATHERED = 2**28
"""Bytes of others' embeddings above which they go round a ring, unless the caller chooses."""

TILES = {"cpu": 512}
"""Side of a tile by device: one that stays in a core's cache. 4096 on any other device."""

TYPES = ("float64", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Form:
    """The checked form of a contrastive loss: what to compute, and with which ranks.

    Attributes:
        counts: number of pairs on each rank.
        exchange: how ranks send embeddings; None if no other rank has a pair.
    """

    kind: Kind
    peers: Peers
    counts: list[int]
    normalize: bool
    tile: int
    exchange: Exchange | None


def form_of(
    z_a: Tensor,
    z_b: Tensor,
    temperature: float | Tensor,
    group: Group,
    kind: ContrastKind,
    bias: float | Tensor | None,
    normalize: bool,
    tile: int | None,
    exchange: Exchange | None,
) -> Form:
    """Check the arguments of :func:`largebatch.nn.contrastive_loss`; a collective call.

    Raises:
        UserError: in the cases that :func:`largebatch.nn.contrastive_loss` lists.
    """
    peers = Peers(_group(group))
    wrong = _wrong(z_a, z_b, temperature, kind, bias, tile, exchange)
    if wrong:
        peers.numbers([-1.0] * 7, z_a.device)
        raise UserError(f"contrastive_loss: {wrong}")
    exchanges = (None, *get_args(Exchange))
    chosen = [
        ("d", z_a.shape[1], None),
        ("the type", TYPES.index(_type(z_a)), TYPES),
        ("kind", list(KINDS).index(kind), tuple(KINDS)),
        ("temperature", number(temperature), None),
        ("normalize", int(normalize), (False, True)),
        ("exchange", exchanges.index(exchange), exchanges),
    ]
    own = [float(z_a.shape[0]), *(float(value) for _, value, _ in chosen)]
    given = peers.numbers(own, z_a.device)
    for rank, (first, *_) in enumerate(given):
        if first < 0:
            raise UserError(f"contrastive_loss: refused the arguments of rank {rank} of the group")
    for place, (name, _, words) in enumerate(chosen, 1):
        for rank, values in enumerate(given):
            if values[place] != given[0][place]:
                pair = (given[0][place], values[place])
                here, there = (f"{v:g}" if words is None else words[int(v)] for v in pair)
                raise UserError(
                    f"contrastive_loss: {name} is {here} on rank 0 and {there} on rank {rank} of"
                    " the group: must be the same"
                )
    counts = [int(values[0]) for values in given]
    if sum(counts) < 2:
        raise UserError(f"contrastive_loss: {sum(counts)} pairs on all ranks: at least 2")
    if peers.size == 1:
        exchange = None
    elif exchange is None:
        others = 2 * (sum(counts) - min(counts)) * z_a.shape[1] * z_a.element_size()
        exchange = "ring" if others > GATHERED else "gather"
    side = min(tile or TILES.get(z_a.device.type, 4096), max(counts))
    return Form(KINDS[kind], peers, counts, normalize, side, exchange)


def number(value: float | Tensor | None) -> float:
    """Return a float from a number, a tensor or None (left out)."""
    return float(value.detach() if isinstance(value, Tensor) else value or 0.0)


def _group(group: Group) -> dist.ProcessGroup | None:
    if isinstance(group, str):
        if group != "alone":
            raise UserError(f"contrastive_loss: group={group!r}: a process group, 'alone' or None")
        return None
    if group is None and dist.is_available() and dist.is_initialized():
        return dist.group.WORLD
    return group


def _type(z: Tensor) -> str:
    return str(z.dtype).removeprefix("torch.")


def _wrong(
    z_a: Tensor,
    z_b: Tensor,
    temperature: float | Tensor,
    kind: str,
    bias: float | Tensor | None,
    tile: int | None,
    exchange: str | None,
) -> str:
    """Return what is wrong with this rank's arguments."""
    if kind not in KINDS:
        return f"kind={kind!r}: choose from {', '.join(KINDS)}"
    if exchange not in (None, *get_args(Exchange)):
        return f"exchange={exchange!r}: choose from {', '.join(get_args(Exchange))}, or None"
    if tile is not None and tile < 1:
        return f"tile={tile}: must be at least 1"
    if z_a.dim() != 2 or z_a.shape != z_b.shape or z_a.shape[1] == 0:
        shapes = f"{tuple(z_a.shape)} and {tuple(z_b.shape)}"
        return f"z_a and z_b of shapes {shapes}: must be (n, d), row i of both a pair"
    if _type(z_a) not in TYPES or _type(z_b) != _type(z_a):
        types = f"{_type(z_a)} and {_type(z_b)}"
        return f"z_a and z_b of types {types}: one of {', '.join(TYPES)} for both"
    if z_a.device != z_b.device:
        return f"z_a and z_b on {z_a.device} and {z_b.device}: must be on one device"
    for name, value in (("temperature", temperature), ("bias", bias)):
        if isinstance(value, Tensor) and value.numel() != 1:
            return f"{name} of shape {tuple(value.shape)}: must be one number"
        if not math.isfinite(number(value)):
            return f"{name}={number(value):g}: must be finite"
    if number(temperature) <= 0:
        return f"temperature={number(temperature):g}: must be above 0"
    if bias is not None and not KINDS[kind].pairwise:
        return f"bias: kind={kind} has none; leave it out, or take kind='siglip'"
    return ""
