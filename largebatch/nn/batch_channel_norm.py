"""Batch-channel norm: a batch norm, and a group norm of each sample after it.

Qiao, Wang, Liu, Shen, Yuille, "Micro-batch training with batch-channel normalization and weight
standardization", 2019, section 4, with batch statistics. As in the authors' code, the channel part
has a scale and a shift for each group. The paper's other form, for one or two samples a device,
normalises by running statistics in training. It is not offered: here each ghost batch has its own
statistics.
"""

# No annotations as strings here: torch.jit reads those of what it compiles.

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch.nn.config import NormConfig, Running
from largebatch.nn.over_ghosts import OverGhosts
from largebatch.nn.registry import NormFacts, norms
from largebatch.nn.sample_norm import DEFAULT_GROUPS, check_groups

CHANNEL_PART = ("channel_weight", "channel_bias")
"""The parameters that a plain batch norm has not."""


class BatchChannelNorm(OverGhosts):
    """Ghost batch norm, then a norm over groups of each sample's channels.

    The channel part gives every group of every sample mean 0 and variance 1, in training and in
    evaluation. So no group of channels can die out, whatever the statistics over samples were.
    Batch part, running statistics and ``activation`` are those of ``GhostBatchNorm``.
    ``state_dict`` has two more entries, ``channel_weight`` and ``channel_bias`` (groups,). A ReLU
    and a residual cost passes over memory of their own.

    Args:
        num_features: channels C of the (N, C, ...) input, which has 2 to 5 dimensions.
        num_groups: number of groups of channels; divides C.
        ghost_size: samples in a ghost batch; None for all samples of a forward.
        eps: added to both variances.
        momentum, affine, track_running_stats, running, activation, bias: see ``GhostBatchNorm``.

    Raises:
        ValueError: an argument is out of its range.
        UserError: ``num_groups`` does not divide the channels.
    """

    fusible: ClassVar[bool] = False

    def __init__(
        self,
        num_features: int,
        num_groups: int,
        ghost_size: int | None = None,
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
        check_groups(num_groups, num_features)
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
        self.num_groups = num_groups
        self.channel_weight = nn.Parameter(torch.ones(num_groups, device=device, dtype=dtype))
        self.channel_bias = nn.Parameter(torch.zeros(num_groups, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if hasattr(self, "channel_weight"):  # torch calls it before they are made
            nn.init.ones_(self.channel_weight)
            nn.init.zeros_(self.channel_bias)

    def _finish(self, y: Tensor, residual: Tensor | None) -> Tensor:
        each = self.num_features // self.num_groups
        weight = self.channel_weight.repeat_interleave(each)
        bias = self.channel_bias.repeat_interleave(each)
        y = F.group_norm(y, self.num_groups, weight, bias, self.eps)
        if residual is not None:
            y = y + residual
        return y if self.activation is None else F.relu(y)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_groups={self.num_groups}"


@norms.register(
    "batch_channel",
    "ghost batch norm, then a norm over norm.groups groups of each sample's channels",
    "Qiao et al. 2019",
    NormFacts(ghosts=True, own="groups"),
)
def _batch_channel(num_features: int, config: NormConfig) -> BatchChannelNorm:
    if config.ghost_size is None:
        raise UserError(
            "norm.ghost_size is not set: norm.kind=batch_channel needs it (samples, say 32)"
        )
    groups = config.groups or DEFAULT_GROUPS
    return BatchChannelNorm(num_features, groups, config.ghost_size, running=config.running)
