"""The ``norm`` section of a run's config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from largebatch.schedule import Duration

Running = Literal["sequential", "averaged", "last"]


@dataclass
class NormConfig:
    """The normalisation that replaces the model's batch norms."""

    kind: str = "batch"
    """batch (statistics per forward, as torch), ghost (per ghost batch), sync (ghosts that span
    ranks), l1, linf or topk (per ghost batch, by another norm), batch_channel (per ghost batch,
    then per sample), layer, instance or group (per sample), weight, bounded_weight or equal_weight
    (the weights are normalised instead), or none."""
    ghost_size: int | None = None
    """Samples that share their statistics, over all ranks that hold them; needed by the kinds
    ghost, l1, linf, topk and batch_channel. Unset with sync: what the ranks of a group hold in one
    forward."""
    sync_ranks: int | None = None
    """Ranks that hold a ghost together, with sync (unset: all), l1, linf and topk (unset: one);
    divides the number of ranks."""
    topk: int | None = None
    """Largest deviations that kind=topk averages; unset means 10."""
    groups: int | None = None
    """Groups of a sample's channels with kind=group or batch_channel; unset means 32."""
    running: Running = "sequential"
    """How a step's ghosts enter the running statistics: one after the other, averaged, or alone
    (last: no moving average)."""
    momentum: float | None = None
    """Weight of new running statistics, 0 to 1; unset keeps the model's own (0.1 in torch)."""
    eps: float | None = None
    """Added to the variance under the root; unset keeps the model's own (1e-5 in torch)."""
    half_life: Duration | None = None
    """Half-life of the running statistics in samples, in place of momentum: a step of B samples
    keeps 2^(-B / half_life) of them, however it is divided."""
