"""Contrastive losses over a batch that several ranks hold together, exact and in little memory.

NT-Xent: Chen, Kornblith, Norouzi, Hinton, "A simple framework for contrastive learning of visual
representations", 2020, equation 1. CLIP: Radford et al., "Learning transferable visual models from
natural language supervision", 2021, figure 3. SigLIP: Zhai, Mustafa, Kolesnikov, Beyer, "Sigmoid
loss for language image pre-training", 2023, algorithm 1; blocks that go from rank to rank are its
section 3.3.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from largebatch._ops import accumulate_dtype
from largebatch.nn.contrast_arguments import ContrastKind, Exchange, Form, Group, form_of
from largebatch.nn.contrast_ranks import Embeddings
from largebatch.nn.contrast_tiles import Gradients, Side, Sides, Sums, other_tiles, own_tiles

SMALLEST_NORM = 1e-12  # as torch.nn.functional.normalize has it


def contrastive_loss(
    z_a: Tensor,
    z_b: Tensor,
    temperature: float | Tensor,
    group: Group = None,
    kind: ContrastKind = "ntxent",
    *,
    bias: float | Tensor | None = None,
    normalize: bool = True,
    tile: int | None = None,
    exchange: Exchange | None = None,
) -> Tensor:
    """Return the contrastive loss of this rank's pairs, summed, against the pairs of all ranks.

    Row i of ``z_a`` and row i of ``z_b`` are a pair, and all N pairs of ``group`` are contrasted.
    With u and v the rows divided by their norms, the result is the sum over this rank's pairs i of

    - ``ntxent``: -log softmax of u_i . v_i / temperature among the 2N - 1 other views, averaged
      over u_i and v_i as the anchor;
    - ``clip``: the same among the N rows of the other encoder;
    - ``siglip``: -log sigmoid(y (u_i . v_j / temperature + bias)), summed over all N rows j of
      ``z_b``, with y = 1 where j = i and -1 elsewhere.

    **The weight of the result is the number of pairs**: the papers' mean loss is the sum of all
    ranks' results divided by N. Gradients are this rank's part of the gradient of the *sum over all
    ranks*: a row of ``z_a`` gets its gradient from every rank's loss. So sum the parameters'
    gradients over ranks and divide by N; there is no factor of the number of ranks. torch's
    DistributedDataParallel divides by the number of ranks W by itself: use ``(loss * W /
    N).backward()``. The gradients of ``temperature`` and ``bias`` are parts too, whose sum over
    ranks is the whole.

    Sums are float32 (float64 for float64), softmax by a running maximum. Beside the arguments and
    their gradients, memory holds two tiles of logits and the other ranks' embeddings (see
    ``exchange``). The backward pass computes the tiles again. ``largebatch.nn.contrast_ranks``
    counts the messages. Every rank of the group must call forward and backward the same number of
    times in the same order, also without rows. Gradients of gradients are refused. torch.compile
    does not compile the call (a graph break).

    Args:
        z_a, z_b: embeddings (n, d), float64, float32, bfloat16 or float16; n may differ by rank.
        temperature: above 0, the same on every rank. A tensor of one number may require a gradient.
        group: the ranks that hold the batch together; None for all, ``"alone"`` for this rank.
        kind: ``ntxent`` for two views by one encoder, ``clip`` and ``siglip`` for two encoders.
        bias: for ``siglip`` alone, a number or a tensor of one; None for 0. The paper begins with
            -10 and a temperature of 0.1.
        normalize: divide rows by their norms; False if the rows are normalised already.
        tile: side of a square of logits; None for 512 on a CPU, 4096 on a GPU.
        exchange: ``gather`` holds all ranks' embeddings. ``ring`` holds those of two ranks at a
            time and sends them again for the backward pass. None: a ring if the others' take over
            256 MB.

    Raises:
        UserError: an argument is out of its range, ranks disagree, or there are fewer than 2 pairs.
            Raised on every rank.
    """

    def loss() -> Tensor:
        form = form_of(z_a, z_b, temperature, group, kind, bias, normalize, tile, exchange)
        return contrast(z_a, z_b, temperature, bias, form)[0]

    if torch.compiler.is_compiling():  # a trace would hold every tile
        return torch.compiler.disable(loss)()
    return loss()


def contrast(
    z_a: Tensor,
    z_b: Tensor,
    temperature: float | Tensor,
    bias: float | Tensor | None,
    form: Form,
) -> tuple[Tensor, Tensor]:
    """Return the loss and, outside of autograd, each pair's part of the loss, (n,)."""
    wide = accumulate_dtype(z_a.dtype)
    numbers = [
        torch.as_tensor(0.0 if value is None else value, dtype=wide, device=z_a.device).reshape(())
        for value in (temperature, bias)
    ]
    loss, values = _Contrast.apply(z_a, z_b, *numbers, form)
    return loss, values


class _Contrast(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, temperature: Tensor, bias: Tensor, form: Form
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(a.device.type, enabled=False):
            held = form.peers.gathered(a, b, form.counts) if form.exchange == "gather" else []
            sides = _sides(a, b, temperature, form)
            sums = Sums(form.kind, sides, bias, form.tile)
            for tile in own_tiles(form.kind, sides, form.tile):
                sums.add(tile)
            for others in _others(a, b, held, form):
                columns = _sides(others[0], others[1], temperature, form)
                for tile in other_tiles(form.kind, sides, columns, form.tile):
                    sums.add(tile)
            values, logarithms = sums.values()
        rows = [rows for others in held for rows in others[:2]]
        ctx.save_for_backward(a, b, temperature, bias, logarithms, *rows)
        ctx.form, ctx.spans = form, [others[2] for others in held]
        ctx.mark_non_differentiable(values)
        return values.sum(), values

    @staticmethod
    def backward(ctx: Any, scale: Tensor, _: Any) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("contrastive_loss has no second derivative (create_graph)")
        a, b, temperature, bias, logarithms, *rows = ctx.saved_tensors
        form: Form = ctx.form
        held = list(zip(rows[::2], rows[1::2], ctx.spans, strict=True))
        with torch.autocast(a.device.type, enabled=False):
            # What columns of other ranks need: their logarithms, and the gradient of their loss.
            own = torch.cat((logarithms, scale.expand(1, a.shape[0])))
            every = form.peers.of_pairs(own, form.counts)
            sides = _sides(a, b, temperature, form)
            sums = Gradients(form.kind, sides, bias, form.tile, logarithms, scale)
            for tile in own_tiles(form.kind, sides, form.tile):
                sums.add(tile)
            for others in _others(a, b, held, form):
                columns, theirs = (
                    _sides(others[0], others[1], temperature, form),
                    every[:, others[2]],
                )
                for tile in other_tiles(form.kind, sides, columns, form.tile):
                    sums.add_others(tile, theirs[:2], theirs[2])
            gradients = sums.values()
            along = [
                _through_rows(side, gradient, temperature, form)
                for side, gradient in zip(sides, gradients, strict=True)
            ]
            # Weights times logits, summed, are half of the rows times their gradients, summed.
            of_temperature = (along[0] + along[1]) / (-2 * temperature)
        return (*(g.to(a.dtype) for g in gradients), of_temperature, sums.of_bias, None)


def _others(a: Tensor, b: Tensor, held: list[Embeddings], form: Form) -> Iterable[Embeddings]:
    return form.peers.ring(a, b, form.counts) if form.exchange == "ring" else held


def _sides(a: Tensor, b: Tensor, temperature: Tensor, form: Form) -> Sides:
    """Return embeddings as rows whose inner products are the logits."""
    return _side(a, temperature, form), _side(b, temperature, form)


def _side(z: Tensor, temperature: Tensor, form: Form) -> Side:
    root, count = temperature.rsqrt(), z.shape[0]
    if not form.normalize or not count:
        return Side(z, root.expand(count))
    parts = z.split(form.tile)  # a norm in a wider type than its rows' copies them
    norms = torch.cat([torch.linalg.vector_norm(p, dim=1, dtype=root.dtype) for p in parts])
    return Side(z, root / norms.clamp_(min=SMALLEST_NORM))


def _through_rows(side: Side, gradient: Tensor, temperature: Tensor, form: Form) -> Tensor:
    """Turn the gradient of a side's rows into that of ``z``, in place.

    Returns:
        the rows times their gradients, summed.
    """
    total = temperature.new_zeros(())
    for span in side.spans(form.tile):
        x, g = side[span], gradient[span]
        along = (x * g).sum(1, keepdim=True)
        total += along.sum()
        if form.normalize:
            g.sub_(x * (along * temperature))
        g.mul_(side.factor[span, None])
    return total
