"""Top-k batch norm: scaled by the mean of the k largest absolute deviations.

Hoffer, Banner, Golan, Soudry, "Norm matters", 2018, section 4.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist

from largebatch._ops import NormPolicy
from largebatch.nn.config import NormConfig, Running
from largebatch.nn.over_ghosts import OverGhosts, over_ghosts
from largebatch.nn.registry import NormFacts, norms


class TopKBatchNorm(OverGhosts):
    """Batch norm by the mean of the ``k`` largest absolute deviations times a constant.

    As published, the constant is that of ``LInfBatchNorm`` for every k. So with k = 10 the result
    is 0.98 standard deviations for 64 normally distributed values, and 1.25 for 4096. If a channel
    has fewer values than k, all of them count. Arguments and behaviour are those of
    ``L1BatchNorm``, with one more argument ``k``, at least 1.
    """

    policy = NormPolicy.TOP_K

    def __init__(
        self,
        num_features: int,
        ghost_size: int | None = None,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        running: Running = "sequential",
        activation: Literal["relu"] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        process_group: dist.ProcessGroup | Literal["all"] | None = None,
        k: int = 10,
        *,
        bias: bool = True,
    ) -> None:
        if k < 1:
            raise ValueError(f"k={k}: must be at least 1 value")
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
            process_group,
            bias=bias,
        )
        self.top = k

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, k={self.top}"


@norms.register(
    "topk",
    "batch norm by the largest norm.topk deviations",
    "Hoffer et al. 2018",
    NormFacts(ghosts=True, spans="asked", own="topk"),
)
def _topk(num_features: int, config: NormConfig) -> TopKBatchNorm:
    k = 10 if config.topk is None else config.topk
    return TopKBatchNorm(num_features, **over_ghosts(config), k=k)
