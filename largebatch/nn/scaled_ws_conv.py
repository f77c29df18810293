"""Parts of networks without norms: scaled weight standardisation, SkipInit, activation gains.

Brock, De, Smith, "Characterizing signal propagation to close the performance gap in unnormalized
ResNets", 2021; De and Smith, "Batch normalization biases residual blocks towards the identity
function in deep networks", 2020 (SkipInit).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

ACTIVATION_GAINS = {
    "relu": 1.7139588594436646,
    "gelu": 1.7015043497085571,
    "silu": 1.7881293296813965,
    "tanh": 1.5939117670059204,
}
"""What brings the variance of an activation of normally distributed values back to 1: the
constants of the published code, estimated there (exactly, ReLU's is sqrt(2 / (1 - 1 / pi)) =
1.71286)."""


class ScaledWSConv2d(nn.Conv2d):
    """Convolution by W' = gain (W - mean) / sqrt(fan_in variance), per output channel.

    Every channel of W' has mean 0 and, at gain 1, norm 1. So input of unit variance gives output of
    unit variance without a mean shift, whatever the weights are. ``gain`` (out_channels,) is
    learned and starts at 1. The term fan_in x variance is at least ``eps``, 1e-4 as in the
    published code.

    Args:
        eps: smallest value of fan_in x variance.
        others: arguments of ``nn.Conv2d``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *args: Any,
        eps: float = 1e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, *args, **kwargs)
        self.eps = eps
        self.gain = nn.Parameter(torch.ones_like(self.weight[:, 0, 0, 0]))

    def standardized_weight(self) -> Tensor:
        """Return W', of the shape of ``weight``."""
        fan_in = self.weight[0].numel()
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        scale = self.gain.view(-1, 1, 1, 1) * (variance * fan_in).clamp(min=self.eps).rsqrt()
        return (self.weight - mean) * scale

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of ``x`` (N, C, H, W)."""
        return self._conv_forward(x, self.standardized_weight(), self.bias)


class SkipInit(nn.Module):
    """The end of a residual branch: y = gain x, with a learned scalar that starts at ``gain``.

    With ``gain`` 0 a residual block starts as its shortcut alone.
    """

    def __init__(self, gain: float = 0.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(float(gain)))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` scaled."""
        return x * self.gain
