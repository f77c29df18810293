"""Mixup, of pixels or of hidden states, and CutMix inside ghost batches.

Zhang, Cisse, Dauphin and Lopez-Paz 2018, "mixup: Beyond empirical risk minimization"
(arXiv:1710.09412); Verma et al. 2019, "Manifold Mixup" (arXiv:1806.05236); Yun et al. 2019,
"CutMix" (arXiv:1905.04899). Partners, lambda, the layer and the box of a ghost are drawn from
(seed, epoch, position of its first sample). So the result does not depend on how ghosts are divided
over ranks and micro-batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from largebatch.data.draws import Stream, key
from largebatch.nn.hidden_mixing import INPUT


@dataclass(frozen=True)
class Mixed:
    """The second half of a mixed batch: the loss is weight * loss(targets) +
    (1 - weight) * loss(partners), sample by sample.

    Attributes:
        partners: int64 (n,), the labels of the samples mixed in.
        weight: (n,), lambda: the share of each sample's own label, in the inputs' type.
        rows: int64 (n,), the samples mixed in, by their rows.
        hidden: by layer (its number in ``data.mixup_layers``) in which some ghost is mixed, (n,):
            the share of each sample's own state.
    """

    partners: Tensor
    weight: Tensor
    rows: Tensor
    hidden: Mapping[int, Tensor] = field(default_factory=dict)

    def head(self, n: int) -> Mixed:
        """Return the part of the first ``n`` samples, as views."""
        hidden = {layer: share[:n] for layer, share in self.hidden.items()}
        return Mixed(self.partners[:n], self.weight[:n], self.rows[:n], hidden)


def mix_batch(
    inputs: Tensor,
    targets: Tensor,
    ghosts: Sequence[int],
    first_positions: Sequence[int],
    seed: int,
    epoch: int,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    layers: Sequence[int | str] = (),
) -> tuple[Tensor, Mixed]:
    """Mix each sample with a partner of its own ghost.

    Args:
        inputs: (n, channels, height, width); not changed.
        targets: int64 (n,).
        ghosts: sizes of the ghosts, which add up to n.
        first_positions: position in the epoch of each ghost's first sample.
        seed: the run's seed.
        epoch: the epoch.
        mixup: alpha of mixup's Beta(alpha, alpha); 0 is off.
        cutmix: alpha of CutMix's; 0 is off. With both on, each ghost takes one or the other with
            equal chance.
        layers: a ghost that takes mixup is mixed in one of these layers, with equal chance.
            ``input`` is the inputs, whose pixels are mixed here. Empty: the inputs only.

    Returns:
        The mixed inputs, and the partners' labels with their weights and the layers to mix later.
    """
    assert sum(ghosts) == len(inputs)
    assert len(first_positions) == len(ghosts)
    assert mixup > 0 or cutmix > 0
    partners = np.empty(len(inputs), dtype=np.int64)
    weights = np.empty(len(inputs), dtype=np.float64)
    boxes: list[tuple[int, int, int, int, int, int]] = []
    later: dict[int, list[tuple[int, int]]] = {}
    height, width = inputs.shape[-2:]
    start = 0
    for size, position in zip(ghosts, first_positions, strict=True):
        random = np.random.Generator(np.random.Philox(key=key(seed, epoch, Stream.MIX, position)))
        cut = cutmix > 0 and (mixup <= 0 or random.random() < 0.5)
        alpha = cutmix if cut else mixup
        weight = random.beta(alpha, alpha)
        stop = start + size
        partners[start:stop] = start + random.permutation(size)
        layer = int(random.integers(len(layers))) if layers and not cut else None
        if layer is not None and layers[layer] != INPUT:
            later.setdefault(layer, []).append((start, stop))
        if cut:
            top, bottom, left, right = _box(random, weight, height, width)
            boxes.append((start, stop, top, bottom, left, right))
            # The label follows the pixels that are really pasted.
            weight = 1.0 - (bottom - top) * (right - left) / (height * width)
        weights[start:stop] = weight
        start = stop
    chosen = torch.from_numpy(partners).to(inputs.device, non_blocking=True)
    weight_of = torch.from_numpy(weights).to(inputs.device, inputs.dtype, non_blocking=True)
    share = weight_of.clone()
    hidden = {}
    for number, spans in sorted(later.items()):
        hidden[number] = torch.ones_like(weight_of)
        for first, last in spans:
            hidden[number][first:last] = weight_of[first:last]
            share[first:last] = 1.0
    for first, last, *_ in boxes:
        share[first:last] = 1.0
    # The partner's part is added as a difference, so that a weight of 1 leaves the bits alone.
    other = inputs.index_select(0, chosen)
    mixed = torch.lerp(other, inputs, share.view(-1, 1, 1, 1))
    for first, last, top, bottom, left, right in boxes:
        mixed[first:last, :, top:bottom, left:right] = other[first:last, :, top:bottom, left:right]
    return mixed, Mixed(targets.index_select(0, chosen), weight_of, chosen, hidden)


def _box(
    random: np.random.Generator, weight: float, height: int, width: int
) -> tuple[int, int, int, int]:
    """Draw the box of area (1 - weight) around a uniform centre, clipped to the image."""
    side = np.sqrt(1.0 - weight)
    box_height, box_width = int(height * side), int(width * side)
    middle, centre = int(random.integers(height)), int(random.integers(width))
    top, left = middle - box_height // 2, centre - box_width // 2
    return (
        max(top, 0),
        min(top + box_height, height),
        max(left, 0),
        min(left + box_width, width),
    )
