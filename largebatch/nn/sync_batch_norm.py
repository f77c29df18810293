"""Batch norm whose statistics are those of all ranks together, or of groups of them.

Ioffe and Szegedy 2015; over ranks as in Peng et al., "MegDet", 2018, by one message a layer and
direction (``largebatch.nn.over_ranks``).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from torch import nn

from largebatch.nn.config import NormConfig, Running
from largebatch.nn.over_ghosts import OverGhosts
from largebatch.nn.over_ranks import ranks_of
from largebatch.nn.registry import NormFacts, norms


class SyncBatchNorm(OverGhosts):
    """Batch norm over one ghost batch that all ranks of a group hold together.

    Arguments and ``state_dict`` are those of ``torch.nn.SyncBatchNorm``. Unlike torch's, this
    module works on CPU too, never waits for the device and compiles without a graph break. It sends
    2C + 1 numbers per layer and forward, whatever the number of ranks. Ranks may hold different
    numbers of samples, also none, but all must run every forward and backward. On one rank, or in
    evaluation, this is plain batch norm. Gradients of gradients are refused on more than one rank.

    Args:
        num_features: channels C of the (N, C, ...) input, which has 2 to 5 dimensions.
        eps: added to the variance.
        momentum: weight of the new running statistics, or None for their cumulative average.
        affine: learn a scale and a shift per channel.
        track_running_stats: keep running statistics; without them a forward needs two messages.
        process_group: the ranks that share statistics; None for all.
        running: how the ghosts of a step enter the running statistics (``largebatch.nn.running``).
        activation: ``"relu"`` to end in one.
        bias: learn the shift, where ``affine``.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: dist.ProcessGroup | None = None,
        running: Running = "sequential",
        activation: Literal["relu"] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(
            num_features,
            None,
            eps,
            momentum,
            affine,
            track_running_stats,
            running,
            activation,
            device,
            dtype,
            process_group="all" if process_group is None else process_group,
            bias=bias,
        )


def join_ranks(model: nn.Module, process_group: dist.ProcessGroup) -> nn.Module:
    """Let the norms of ``model`` that span ranks share their statistics in ``process_group``.

    Every rank must call this with its own group. Returns ``model``.
    """
    for module in model.modules():
        if isinstance(module, OverGhosts) and module.over_ranks:
            module.ranks = ranks_of(process_group)
    return model


@norms.register(
    "sync",
    "batch norm over ghosts that span norm.sync_ranks ranks, or all",
    "Peng et al. 2018",
    NormFacts(ghosts=True, spans="always"),
)
def _sync(num_features: int, config: NormConfig) -> SyncBatchNorm:
    return SyncBatchNorm(num_features, running=config.running)
