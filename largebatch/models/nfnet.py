"""NFNet-F0 to F6: networks without norms.

Brock et al., "High-performance large-scale image recognition without normalization", 2021, in the
form of the authors' code: bottlenecks with two grouped 3x3 convolutions, squeeze and excitation,
GELU, average pooling in the shortcut. Block and bookkeeping of variances are those of
``nf_resnet``. Padding is symmetric, as is usual in PyTorch. Unlike in the authors' code, stochastic
depth keeps the expectation.

The authors train with adaptive gradient clipping (``optim.agc``: 0.01, the classifier's weight left
out) and Nesterov's momentum 0.9. The rate is 0.1 x batch / 256, with 5 epochs of warm-up and a
cosine over 360. Label smoothing is 0.1, and weight decay 2e-5 on weights alone. Images have 192,
224, 256, 320, 384, 416 and 448 pixels for F0 to F6.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from largebatch.models.layers import drop_path_rates, stochastic_depth
from largebatch.models.registry import ImageShape, models, need_size
from largebatch.nn import ACTIVATION_GAINS, ScaledWSConv2d, SkipInit

ALPHA = 0.2
GAIN = ACTIVATION_GAINS["gelu"]
GROUP_WIDTH = 128  # channels of a group
_WIDTHS = (256, 512, 1536, 1536)
_DEPTHS = (1, 2, 6, 3)  # of F0; Fn has n + 1 times as many
_DROPS = (0.2, 0.3, 0.4, 0.4, 0.5, 0.5, 0.5)
_SIZES = ("71.5", "132.6", "193.8", "254.9", "316.1", "377.2", "438.4")


def active(x: Tensor) -> Tensor:
    """Return GELU of ``x`` (tanh form, as in JAX), scaled to keep a variance of 1."""
    return F.gelu(x, approximate="tanh") * GAIN


class SqueezeExcitation(nn.Module):
    """Scales channels by a gate of their means (Hu et al. 2018), times 2 to keep the variance."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // 2)
        self.fc2 = nn.Linear(channels // 2, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3))))))
        return 2 * gate[:, :, None, None] * x


class NFBlock(nn.Module):
    """Bottleneck of two grouped 3x3 convolutions, with activations before convolutions.

    Args:
        in_channels, channels: channels of input and output; inner layers have half of the latter.
        stride: stride of the first 3x3 convolution and of the shortcut's pooling.
        beta: expected standard deviation of the input.
        gain: initial value of SkipInit's gain.
        drop_path: probability to drop the branch.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        beta: float,
        gain: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.beta = beta
        width = channels // 2
        groups = width // GROUP_WIDTH
        self.conv1 = ScaledWSConv2d(in_channels, width, 1)
        self.conv2 = ScaledWSConv2d(width, width, 3, stride, padding=1, groups=groups)
        self.conv3 = ScaledWSConv2d(width, width, 3, padding=1, groups=groups)
        self.conv4 = ScaledWSConv2d(width, channels, 1)
        self.shortcut: nn.Module | None = None
        if stride > 1 or in_channels != channels:
            pool = nn.AvgPool2d(2, ceil_mode=True) if stride > 1 else nn.Identity()
            self.shortcut = nn.Sequential(pool, ScaledWSConv2d(in_channels, channels, 1))
        self.excitation = SqueezeExcitation(channels)
        self.drop_path = stochastic_depth(drop_path)
        self.skip_init = SkipInit(gain)

    def forward(self, x: Tensor) -> Tensor:
        scaled = active(x) / self.beta
        shortcut = x if self.shortcut is None else self.shortcut(scaled)
        branch = active(self.conv1(scaled))
        branch = active(self.conv3(active(self.conv2(branch))))
        branch = self.excitation(self.conv4(branch))
        total: Tensor = shortcut + ALPHA * self.skip_init(self.drop_path(branch))
        return total


class NFNet(nn.Module):
    """NFNet-F``number``.

    Args:
        number: 0 to 6.
        num_classes: outputs.
        in_channels: channels of the images (N, in_channels, H, W).
        residual_gamma: initial value of every block's SkipInit.
        drop: dropout before the classifier.
        drop_path: stochastic depth of the last block.
    """

    def __init__(
        self,
        number: int,
        num_classes: int,
        in_channels: int,
        residual_gamma: float,
        drop: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        stem, channels = [], in_channels
        for out, stride in ((16, 2), (32, 1), (64, 1), (128, 2)):
            stem.append(ScaledWSConv2d(channels, out, 3, stride, padding=1))
            channels = out
        self.stem = nn.ModuleList(stem)
        depths = [depth * (number + 1) for depth in _DEPTHS]
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        variance = 1.0
        blocks = []
        for stage, (out, depth) in enumerate(zip(_WIDTHS, depths, strict=True)):
            for block in range(depth):
                stride = 2 if stage and block == 0 else 1
                beta = math.sqrt(variance)
                blocks.append(NFBlock(channels, out, stride, beta, residual_gamma, next(rates)))
                channels = out
                variance = (1.0 if block == 0 else variance) + ALPHA**2
        self.blocks = nn.Sequential(*blocks)
        self.last = ScaledWSConv2d(channels, 2 * channels, 1)
        self.drop = nn.Dropout(drop)
        self.fc = nn.Linear(2 * channels, num_classes)
        for module in self.modules():
            if isinstance(module, ScaledWSConv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of images (N, in_channels, H, W)."""
        for number, convolution in enumerate(self.stem):
            x = convolution(active(x) if number else x)
        x = active(self.last(self.blocks(x)))
        logits: Tensor = self.fc(self.drop(x.mean((2, 3))))
        return logits


def _register(number: int) -> None:
    own = _DROPS[number]

    @models.register(
        f"nfnet_f{number}",
        f"NFNet-F{number} without norms for ImageNet, {_SIZES[number]} M parameters",
        "Brock et al. 2021, High-performance large-scale image recognition",
    )
    def nfnet(
        num_classes: int = 1000,
        image_shape: ImageShape = (3, 224, 224),
        residual_gamma: float = 0.0,
        drop: float = own,
        drop_path: float = 0.0,
    ) -> nn.Module:
        need_size(f"nfnet_f{number}", image_shape, 32)
        return NFNet(number, num_classes, image_shape[0], residual_gamma, drop, drop_path)


for _number in range(len(_DROPS)):
    _register(_number)
