"""Ghost batch norm: statistics over small, fixed groups of samples inside a large batch.

Hoffer, Hubara, Soudry, "Train longer, generalize better", 2017, Algorithm 1.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from largebatch._errors import UserError
from largebatch.nn.config import NormConfig, Running
from largebatch.nn.ghosts import split_ghosts
from largebatch.nn.place import current_place
from largebatch.nn.registry import norms
from largebatch.nn.running import RunningStatistics


class GhostBatchNorm(RunningStatistics):
    """Batch norm over consecutive groups of ``ghost_size`` samples; torch's drop-in otherwise.

    In training every ghost batch is normalised by its own mean and (biased) variance. The last
    ghost may be shorter; one with fewer than two values per channel joins the one before it.
    Evaluation uses the running statistics (without them, the statistics of the whole batch) and
    knows no ghosts. ``state_dict`` is that of torch's batch norm, in both directions.

    Args:
        num_features: channels C of the (N, C, ...) input, which has 2 to 5 dimensions.
        ghost_size: samples in a ghost batch.
        eps: added to the variance.
        momentum: weight of the new running statistics, or None for their cumulative average.
        affine: learn a scale and a shift per channel.
        track_running_stats: keep running statistics for evaluation.
        running: how the ghosts of a step enter the running statistics (``largebatch.nn.running``).
        activation: ``"relu"`` to end in one.

    Under ``DistributedDataParallel`` pass ``broadcast_buffers=False`` and call
    ``largebatch.nn.merge_running_stats(model)`` before evaluation.
    """

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
    ) -> None:
        if ghost_size < 1:
            raise ValueError(f"ghost_size={ghost_size}: must be at least 1 sample")
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            track_running_stats,
            running,
            activation,
            device,
            dtype,
        )
        self.ghost_size = ghost_size

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return the normalised ``x`` (N, C, ...), plus ``residual`` if given, then activated.

        Raises:
            ValueError: ``x`` has not 2 to 5 dimensions, not C channels, or in training fewer than
                two values per channel.
        """
        self._check_input_dim(x)
        if self.training:
            y = self._normalize_ghosts(x)
        elif self.running_mean is not None:
            y = F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        else:
            y, _, _ = normalize_groups(x, 1, self.weight, self.bias, self.eps)
        if residual is not None:
            y = y + residual
        return F.relu(y) if self.activation == "relu" else y

    def _normalize_ghosts(self, x: Tensor) -> Tensor:
        place = current_place()
        limit = None if place is None else place.total - place.first
        minimum = 2 if x[0, 0].numel() < 2 else 1
        if min(self.ghost_size, x.shape[0]) < minimum:
            raise ValueError(
                f"expected more than 1 value per channel in training, got input of shape "
                f"{tuple(x.shape)} with ghost_size={self.ghost_size}"
            )
        full, tail = split_ghosts(x.shape[0], self.ghost_size, minimum, limit)
        if limit is not None and full + (tail > 0) > limit:
            raise ValueError(
                f"{x.shape[0]} samples are more than {limit} ghosts of {self.ghost_size}, all that "
                "are left in the step at this ghost_place"
            )
        parts = [(x, full or 1)]
        if full and tail:
            cut = full * self.ghost_size
            parts = [(x[:cut], full), (x[cut:], 1)]
        done = [normalize_groups(p, g, self.weight, self.bias, self.eps) for p, g in parts]
        outputs, means, variances = (
            part[0] if len(part) == 1 else torch.cat(part) for part in zip(*done, strict=True)
        )
        self.record(means, variances)
        return outputs

    def _check_input_dim(self, input: Tensor) -> None:
        if not 2 <= input.dim() <= 5:
            raise ValueError(f"expected 2 to 5 dimensions, got input of shape {tuple(input.shape)}")
        if input.shape[1] != self.num_features:
            raise ValueError(
                f"expected {self.num_features} channels, got input of shape {tuple(input.shape)}"
            )

    def extra_repr(self) -> str:
        activation = f", activation={self.activation!r}" if self.activation else ""
        return (
            f"{super().extra_repr()}, ghost_size={self.ghost_size}, running={self.running!r}"
            f"{activation}"
        )


def normalize_groups(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch-normalise ``groups`` equal runs of samples, each by its own statistics.

    One call of torch's batch norm does all: a channel of a group is a channel of its own.
    Statistics are float32, or float64 for float64 input, whatever the parameters' type.

    Returns:
        the normalised (N, C, ...), in the type and memory format of ``x``; the means and the
        unbiased variances, (groups, C) each, outside of autograd.
    """
    channels = x.shape[1]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    weight, bias = (
        None if p is None else p.to(dtype).repeat(groups) if groups > 1 else p.to(dtype)
        for p in (weight, bias)
    )
    # With momentum 1 torch's running statistics are exactly those of this batch.
    mean = torch.zeros(groups * channels, device=x.device, dtype=dtype)
    variance = torch.zeros_like(mean)

    def normalize(folded: Tensor) -> Tensor:
        return F.batch_norm(folded, mean, variance, weight, bias, True, 1.0, eps)

    if groups == 1:
        y = normalize(x)
    elif _channels_last(x):
        rows = x.movedim(1, -1).reshape(groups, -1, channels).transpose(0, 1).flatten(1)
        y = normalize(rows).unflatten(1, (groups, channels)).transpose(0, 1)
        y = y.reshape(x.shape[0], *x.shape[2:], channels).movedim(-1, 1)
    else:
        folded = x.unflatten(0, (groups, -1)).transpose(0, 1).flatten(1, 2)
        y = normalize(folded).unflatten(1, (groups, channels)).transpose(0, 1).flatten(0, 1)
    return y, mean.view(groups, channels), variance.view(groups, channels)


def _channels_last(x: Tensor) -> bool:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return (
        x.dim() in formats
        and x.is_contiguous(memory_format=formats[x.dim()])
        and not x.is_contiguous()
    )


@norms.register("ghost", "batch norm over ghosts of norm.ghost_size samples", "Hoffer et al. 2017")
def _ghost(num_features: int, config: NormConfig) -> GhostBatchNorm:
    if config.ghost_size is None:
        raise UserError("norm.ghost_size is not set: norm.kind=ghost needs it (samples, say 32)")
    return GhostBatchNorm(num_features, config.ghost_size, running=config.running)
