"""Contrastive losses over a batch that several ranks hold together, exact and in little memory.

NT-Xent: Chen, Kornblith, Norouzi, Hinton, "A simple framework for contrastive learning of visual
representations", 2020, equation 1. CLIP: Radford et al., "Learning transferable visual models from
natural language supervision", 2021, figure 3. SigLIP: Zhai, Mustafa, Kolesnikov, Beyer, "Sigmoid
loss for language image pre-training", 2023, algorithm 1. The blocks that go round a ring of ranks
are the latter's as well (section 3.3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from largebatch._errors import UserError
from largebatch._ops import accumulate_dtype
from largebatch.nn.contrast_ranks import GATHERED, Ranks
from largebatch.nn.contrast_tiles import (
    KINDS,
    Gradients,
    Kind,
    Side,
    Sides,
    Sums,
    other_tiles,
    own_tiles,
)

ContrastKind = Literal["ntxent", "clip", "siglip"]
Exchange = Literal["gather", "ring"]
TILE = 1024
SMALLEST_NORM = 1e-12  # as torch.nn.functional.normalize has it
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@torch.compiler.disable
def contrastive_loss(
    z_a: Tensor,
    z_b: Tensor,
    temperature: float | Tensor,
    group: dist.ProcessGroup | Literal["alone"] | None = None,
    kind: ContrastKind = "ntxent",
    *,
    bias: float | Tensor | None = None,
    normalize: bool = True,
    tile: int = TILE,
    exchange: Exchange | None = None,
) -> Tensor:
    """Return the contrastive loss of this rank's pairs, summed, against those of all ranks.

    Row i of ``z_a`` and row i of ``z_b`` are a pair; all N pairs of ``group`` are contrasted. With
    u and v the embeddings divided by their norms, a rank's result is the sum over its own pairs of

    - ``ntxent``: the mean over the pair's two views of -log softmax of u_i . v_i / temperature among
      the 2N - 1 other views;
    - ``clip``: the mean over both directions of -log softmax of u_i . v_i / temperature among the N
      embeddings of the other encoder;
    - ``siglip``: the N decisions of its row, -log sigmoid(y (u_i . v_j / temperature + bias)) with
      y = 1 where i = j and -1 elsewhere.

    **The weight is the number of pairs**, n on this rank: the papers' mean is the sum of all ranks'
    results divided by N. Every gradient is this rank's part of the gradient of that *sum over all
    ranks*: embeddings get theirs from every rank's loss, so add up parameters' gradients over the
    ranks and divide by N; there is no factor of the number of ranks. With torch's
    DistributedDataParallel, which divides by their number W itself, that is
    ``(loss * W / N).backward()``. Likewise for ``temperature`` and ``bias``: a rank's gradient is
    its part, the sum over ranks is the whole.

    Sums are float32 (float64 for float64), softmax by a running maximum. Memory beyond the arguments
    and their gradients is two tiles of ``tile`` x ``tile`` logits and what is held of other ranks;
    the backward pass makes the tiles again (``largebatch.nn.contrast_ranks`` has the messages).
    Every rank of the group calls forward and backward as often, in the same order, also with no row.

    Args:
        z_a, z_b: (n, d), float64, float32, bfloat16 or float16; n may differ from rank to rank.
        temperature: above 0, the same on every rank; 0-d if a tensor, which may ask for a gradient.
        group: the ranks that hold the batch together; None for all, ``"alone"`` for this rank.
        kind: ``ntxent`` for two views by one encoder, ``clip`` and ``siglip`` for two encoders.
        bias: added to ``siglip``'s logits, 0-d if a tensor; None for 0. The paper starts at -10 with
            a temperature of 0.1.
        normalize: divide each row by its norm; False for rows that have been.
        tile: side of the square of logits that is in memory at once.
        exchange: ``gather`` holds all ranks' embeddings, ``ring`` those of two at a time and sends
            them once more in the backward pass. None: a ring where the others' are above 256 MB.

    Raises:
        UserError: an argument is out of its range, ranks disagree, or there are fewer than 2 pairs;
            on every rank alike.
    """
    return contrast(z_a, z_b, temperature, group, kind, bias, normalize, tile, exchange)[0]


def contrast(
    z_a: Tensor,
    z_b: Tensor,
    temperature: float | Tensor,
    group: dist.ProcessGroup | Literal["alone"] | None,
    kind: ContrastKind,
    bias: float | Tensor | None,
    normalize: bool,
    tile: int,
    exchange: Exchange | None,
) -> tuple[Tensor, Tensor]:
    """Return what :func:`contrastive_loss` does, and outside of autograd each pair's loss, (n,)."""
    ranks = Ranks(_group(group))
    wrong = _wrong(z_a, z_b, temperature, kind, bias, tile, exchange)
    counts = _agreed(ranks, z_a, temperature, kind, normalize, wrong)
    wide = accumulate_dtype(z_a.dtype)
    if exchange is None and ranks.size > 1:
        others = 2 * (sum(counts) - min(counts)) * z_a.shape[1] * z_a.element_size()
        exchange = "ring" if others > GATHERED else "gather"
    form = Form(KINDS[kind], ranks, tuple(counts), normalize, min(tile, max(counts)), exchange)
    return _Contrast.apply(
        z_a,
        z_b,
        torch.as_tensor(temperature, dtype=wide, device=z_a.device).reshape(()),
        torch.as_tensor(0.0 if bias is None else bias, dtype=wide, device=z_a.device).reshape(()),
        form,
    )


@dataclass(frozen=True)
class Form:
    """What a loss computes and with whom.

    Attributes:
        counts: pairs of each rank.
    """

    kind: Kind
    ranks: Ranks
    counts: tuple[int, ...]
    normalize: bool
    tile: int
    exchange: Exchange | None

    def side(self, z: Tensor, temperature: Tensor) -> Side:
        """Return embeddings as rows whose inner products are logits."""
        root = temperature.rsqrt()
        if not self.normalize:
            return Side(z, root.expand(z.shape[0]))
        wide = temperature.dtype
        norms = [torch.linalg.vector_norm(p, dim=1, dtype=wide) for p in z.split(self.tile)]
        return Side(z, root / torch.cat(norms).clamp_(min=SMALLEST_NORM))

    def sides(self, a: Tensor, b: Tensor, temperature: Tensor) -> Sides:
        """Return both sides."""
        return self.side(a, temperature), self.side(b, temperature)


class _Contrast(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, temperature: Tensor, bias: Tensor, form: Form
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(a.device.type, enabled=False):
            ranks, counts = form.ranks, list(form.counts)
            sides = form.sides(a, b, temperature)
            sums = Sums(form.kind, sides, bias, form.tile)
            held = ranks.gathered(a, b, counts) if form.exchange == "gather" else []
            for tile in own_tiles(form.kind, sides, form.tile):
                sums.add(tile)
            for others in held or _passing(form, a, b):
                columns = form.sides(others[0], others[1], temperature)
                for tile in other_tiles(form.kind, sides, columns, form.tile):
                    sums.add(tile)
            values, logarithms = sums.values()
        ctx.save_for_backward(a, b, temperature, bias, logarithms)
        ctx.form, ctx.held = form, held
        ctx.mark_non_differentiable(values)
        return values.sum(), values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Any) -> tuple[Any, ...]:
        a, b, temperature, bias, logarithms = ctx.saved_tensors
        form: Form = ctx.form
        counts = list(form.counts)
        with torch.autocast(a.device.type, enabled=False):
            sides = form.sides(a, b, temperature)
            own = torch.cat((logarithms, scale.expand(1, a.shape[0])))
            every = form.ranks.all_of(own, counts)
            sums = Gradients(form.kind, sides, bias, form.tile, logarithms, scale)
            for tile in own_tiles(form.kind, sides, form.tile):
                sums.add(tile)
            for others in ctx.held or _passing(form, a, b):
                columns, theirs = form.sides(others[0], others[1], temperature), every[:, others[2]]
                for tile in other_tiles(form.kind, sides, columns, form.tile):
                    sums.add_others(tile, theirs[:2], theirs[2])
            gradients = sums.values()
            of_temperature = temperature.new_zeros(())
            for side, gradient in zip(sides, gradients, strict=True):
                of_temperature += _through_rows(form, side, gradient, temperature)
        ctx.held = None
        return (*(g.to(a.dtype) for g in gradients), of_temperature, sums.of_bias, None)


def _passing(form: Form, a: Tensor, b: Tensor) -> Any:
    return form.ranks.ring(a, b, list(form.counts)) if form.exchange == "ring" else ()


def _through_rows(form: Form, side: Side, gradient: Tensor, temperature: Tensor) -> Tensor:
    """Turn the gradient of scaled rows into that of ``z``, in place; return the temperature's.

    A logit's weight times the logit, summed, is half of the rows times their gradients, summed.
    """
    total = temperature.new_zeros(())
    for span in side.spans(form.tile):
        x, g = side[span], gradient[span]
        along = (x * g).sum(1, keepdim=True)
        total += along.sum()
        if form.normalize:
            g.sub_(x * (along * temperature))
        g.mul_(side.factor[span, None])
    return total / (-2 * temperature)


def _group(group: dist.ProcessGroup | Literal["alone"] | None) -> dist.ProcessGroup | None:
    if isinstance(group, str):
        if group != "alone":
            raise UserError(f"contrastive_loss: group={group!r}: a process group, 'alone' or None")
        return None
    if group is None and dist.is_available() and dist.is_initialized():
        return dist.group.WORLD
    return group


def _number(value: float | Tensor) -> float:
    return float(value.detach() if isinstance(value, Tensor) else value)


def _wrong(
    z_a: Tensor,
    z_b: Tensor,
    temperature: float | Tensor,
    kind: str,
    bias: float | Tensor | None,
    tile: int,
    exchange: str | None,
) -> str:
    """Return what is wrong with this rank's arguments."""
    if kind not in KINDS:
        return f"kind={kind!r}: choose from {', '.join(KINDS)}"
    if exchange not in (None, *get_args(Exchange)):
        return f"exchange={exchange!r}: choose from {', '.join(get_args(Exchange))}, or None"
    if z_a.dim() != 2 or z_a.shape != z_b.shape:
        shapes = f"{tuple(z_a.shape)} and {tuple(z_b.shape)}"
        return f"z_a and z_b of shapes {shapes}: must be (n, d), row i of both a pair"
    if z_a.dtype != z_b.dtype or z_a.dtype not in DTYPES:
        return f"z_a and z_b of {z_a.dtype} and {z_b.dtype}: one floating type for both"
    if z_a.device != z_b.device:
        return f"z_a and z_b on {z_a.device} and {z_b.device}: one device for both"
    for name, value in (("temperature", temperature), ("bias", bias)):
        if isinstance(value, Tensor) and value.numel() != 1:
            return f"{name} of shape {tuple(value.shape)}: one number"
    if not 0 < _number(temperature) < math.inf:
        return f"temperature={_number(temperature):g}: must be above 0"
    if bias is not None and not KINDS[kind].pairwise:
        return f"bias: kind={kind} has none; leave it out, or take kind='siglip'"
    if tile < 1:
        return f"tile={tile}: must be at least 1"
    return ""


def _agreed(
    ranks: Ranks,
    z: Tensor,
    temperature: float | Tensor,
    kind: str,
    normalize: bool,
    wrong: str,
) -> list[int]:
    """Return the pairs of every rank; refuse on all of them what one has wrong."""
    if wrong:
        ranks.rows_of([-1.0] * 6, z.device)
        raise UserError(f"contrastive_loss: {wrong}")
    settings = [
        ("d", z.shape[1]),
        ("type", DTYPES.index(z.dtype)),
        ("kind", list(KINDS).index(kind)),
        ("temperature", _number(temperature)),
        ("normalize", float(normalize)),
    ]
    rows = ranks.rows_of([float(z.shape[0]), *(value for _, value in settings)], z.device)
    for rank, row in enumerate(rows):
        if row[0] < 0:
            raise UserError(
                f"contrastive_loss: the arguments of rank {rank} of the group: see there"
            )
        for (name, _), first, value in zip(settings, rows[0][1:], row[1:], strict=True):
            if first != value:
                of = f"{first:g} on rank 0 and {value:g} on rank {rank}"
                raise UserError(f"contrastive_loss: {name} must be the same on all ranks: {of}")
    counts = [int(row[0]) for row in rows]
    if sum(counts) < 2:
        raise UserError(f"contrastive_loss: {sum(counts)} pairs: at least 2 to contrast")
    return counts
