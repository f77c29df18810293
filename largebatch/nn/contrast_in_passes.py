"""A contrastive loss over more samples than one forward pass holds, exactly.

Every sample's gradient depends on all embeddings of the step. So each micro-batch goes forward
twice: first without a graph, for its embeddings; then with a graph, once the gradients of the
embeddings are known (Gao, Zhang, Han, Callan, "Scaling deep contrastive learning batch size under
memory limited setup", 2021).

The result is exact if both passes give the same embeddings. Dropout must draw the same masks, which
is done here, and norms must see the same groups of samples. Ghost batches do, whatever the
micro-batches are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch.nn.contrast_arguments import ContrastKind, Exchange, Group, form_of
from largebatch.nn.contrastive_loss import contrast
from largebatch.nn.frozen import frozen_statistics

Batch = TypeVar("Batch")
Pair = tuple[Tensor, Tensor]


def contrast_in_passes(
    model: nn.Module,
    encode: Callable[[Batch], Pair],
    batches: Sequence[Batch],
    temperature: float | Tensor,
    group: Group = None,
    kind: ContrastKind = "ntxent",
    **options: Any,
) -> Iterator[Tensor]:
    """Yield the loss of each micro-batch of this rank's share of a step; call ``backward`` on each.

    Values and gradients add up to those of :func:`largebatch.nn.contrastive_loss` of the whole
    share. Divide each loss by the step's number of pairs over all ranks; use the same scale on all
    ranks. Call ``backward`` on a loss before taking the next one: then only one micro-batch's graph
    is in memory. Running statistics are updated by the second passes alone. Random number
    generators are reset before the second passes.

        for loss in contrast_in_passes(model, encode, batches, 0.1):
            (loss / pairs).backward()

    Args:
        model: the model that ``encode`` runs; its norms do not count the first passes.
        encode: maps a micro-batch to embeddings (z_a, z_b), (m, d) each, on the model's device.
        batches: micro-batches of this rank, at least one; one without samples gives (0, d).
        options: further arguments of :func:`largebatch.nn.contrastive_loss`.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    first, draws = [], []
    with torch.no_grad(), frozen_statistics(model):
        for batch in batches:
            draws.append(_Draws(device))
            first.append(encode(batch))
    torch.clear_autocast_cache()  # which holds weights without a graph by now
    losses = losses_of_passes(first, temperature, group, kind, **options)
    del first
    for batch, loss, drawn in zip(batches, losses, draws, strict=True):
        drawn.again()
        yield loss(*encode(batch))


def losses_of_passes(
    embeddings: Sequence[Pair],
    temperature: float | Tensor,
    group: Group = None,
    kind: ContrastKind = "ntxent",
    *,
    bias: float | Tensor | None = None,
    normalize: bool = True,
    tile: int | None = None,
    exchange: Exchange | None = None,
) -> list[PassLoss]:
    """Return the loss of each pass, a callable that takes the embeddings of the second pass.

    For training loops of your own; :func:`contrast_in_passes` calls this function. All
    communication between ranks happens here.

    Args:
        embeddings: (z_a, z_b) of each pass, without a graph. At least one pass, which may have no
            row.
        temperature, bias: their whole gradient comes with the first pass's loss.
        group, kind, normalize, tile, exchange: as of :func:`largebatch.nn.contrastive_loss`.
    """
    if not embeddings:
        raise UserError(
            "contrast_in_passes: no micro-batch: an empty one for a rank without samples"
        )
    counts = [a.shape[0] for a, _ in embeddings]
    whole_a, whole_b = (
        torch.cat([z.detach() for z in side]) for side in zip(*embeddings, strict=True)
    )
    form = form_of(whole_a, whole_b, temperature, group, kind, bias, normalize, tile, exchange)
    learned = [value for value in (temperature, bias) if _learned(value)]
    with torch.enable_grad():
        t = temperature.detach().requires_grad_() if _learned(temperature) else temperature
        b = bias.detach().requires_grad_() if _learned(bias) else bias
        inputs = [whole_a.requires_grad_(), whole_b.requires_grad_()]
        inputs += [value for value in (t, b) if _learned(value)]
        loss, values = contrast(whole_a, whole_b, t, b, form)
        of_a, of_b, *rest = torch.autograd.grad(loss, inputs)
    parts = zip(values.split(counts), of_a.split(counts), of_b.split(counts), strict=True)
    losses = [PassLoss(value.sum(), (a, b)) for value, a, b in parts]
    losses[0] = PassLoss(losses[0].value, (*losses[0].gradients, *rest), tuple(learned))
    return losses


@dataclass(frozen=True)
class PassLoss:
    """The loss of one pass, whose value and gradients are known.

    Attributes:
        value: 0-d, the sum over the pass's pairs.
        gradients: gradients of the whole step's loss by the pass's embeddings and by ``learned``.
        learned: temperature and bias, if they require a gradient.
    """

    value: Tensor
    gradients: tuple[Tensor, ...]
    learned: tuple[Tensor, ...] = ()

    def __call__(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """Return the loss with the graph of these embeddings, the first pass's computed again."""
        for z, gradient in zip((z_a, z_b), self.gradients, strict=False):
            if z.shape != gradient.shape:
                shapes = f"{tuple(z.shape)}, in its first {tuple(gradient.shape)}"
                raise UserError(f"contrast_in_passes: a micro-batch's second pass gave {shapes}")
        result: Tensor = _Known.apply(self.value, self.gradients, z_a, z_b, *self.learned)
        return result


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: tuple[Tensor, ...], *_: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Any, ...]:
        return (None, None, *(gradient * scale for gradient in ctx.saved_tensors))


class _Draws:
    """The state of the generators that a forward pass may draw from."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def again(self) -> None:
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)


def _learned(value: float | Tensor | None) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.requires_grad
