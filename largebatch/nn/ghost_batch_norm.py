"""Ghost batch norm: statistics over small, fixed groups of samples inside a large batch.

Hoffer, Hubara, Soudry, "Train longer, generalize better", 2017, Algorithm 1.
"""

from __future__ import annotations

from typing import Literal

import torch

from largebatch._errors import UserError
from largebatch.nn.config import NormConfig, Running
from largebatch.nn.over_ghosts import OverGhosts
from largebatch.nn.registry import NormFacts, norms


class GhostBatchNorm(OverGhosts):
    """Batch norm over consecutive groups of ``ghost_size`` samples; else a drop-in for torch's.

    In training every ghost batch is normalised by its own mean and (biased) variance. The last
    ghost may be shorter; a ghost with fewer than two values per channel joins the one before.
    Evaluation has no ghosts: it uses the running statistics or, without them, the statistics of the
    whole batch. ``state_dict`` is interchangeable with that of torch's batch norm.

    Args:
        num_features: channels C of the (N, C, ...) input, which has 2 to 5 dimensions.
        ghost_size: samples in a ghost batch.
        eps: added to the variance.
        momentum: weight of the new running statistics, or None for their cumulative average.
        affine: learn a scale and a shift per channel.
        track_running_stats: keep running statistics for evaluation.
        running: how the ghosts of a step enter the running statistics (``largebatch.nn.running``).
        activation: ``"relu"`` to end in one.
        bias: learn the shift, where ``affine``.

    Under ``DistributedDataParallel`` pass ``broadcast_buffers=False`` and call
    ``largebatch.nn.merge_running_stats(model)`` before evaluation.
    """

    ghost_size: int

    def __init__(
        self,
        num_features: int,
        ghost_size: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        running: Running = "sequential",
        activation: Literal["relu"] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(
            num_features,
            ghost_size,
            eps,
            momentum,
            affine,
            track_running_stats,
            running,
            activation,
            device,
            dtype,
            bias=bias,
        )


@norms.register(
    "ghost",
    "batch norm over ghosts of norm.ghost_size samples",
    "Hoffer et al. 2017",
    NormFacts(ghosts=True),
)
def _ghost(num_features: int, config: NormConfig) -> GhostBatchNorm:
    if config.ghost_size is None:
        raise UserError("norm.ghost_size is not set: norm.kind=ghost needs it (samples, say 32)")
    return GhostBatchNorm(num_features, config.ghost_size, running=config.running)
