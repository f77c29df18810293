"""Wide ResNet for 32x32 images: Zagoruyko and Komodakis, "Wide residual networks", 2016.

Norm and ReLU come before each convolution; a block that changes the number of channels applies
its first norm and ReLU to the shortcut too.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from largebatch.models.layers import conv3x3, drop_path_rates, kaiming_fan_out, stochastic_depth
from largebatch.models.registry import ImageShape, models, need_size


class PreActivationBlock(nn.Module):
    """norm-ReLU-conv, dropout, norm-ReLU-conv beside a shortcut."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, drop: float, drop_path: float
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.drop = nn.Dropout(drop)
        self.conv2 = conv3x3(channels, channels)
        self.drop_path = stochastic_depth(drop_path)
        self.shortcut: nn.Conv2d | None = None
        if in_channels != channels:
            self.shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        branch = self.conv2(self.drop(F.relu(self.bn2(self.conv1(active)))))
        total: Tensor = shortcut + self.drop_path(branch)
        return total


class WideResNet(nn.Module):
    """Wide ResNet of ``depth`` = 6n + 4 layers: three stages of n blocks, (16, 32, 64) x ``width``.

    Args:
        depth: 16, 22, 28, ...
        width: factor on the channels.
        num_classes: outputs.
        in_channels: channels of the images (N, in_channels, H, W).
        residual_gamma: initial scale of each block's last norm (0 closes the branch).
        drop: dropout between the convolutions of a block (0.3 in the paper's later runs).
        drop_path: stochastic depth of the last block.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        num_classes: int = 10,
        in_channels: int = 3,
        residual_gamma: float = 1.0,
        drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        per_stage = (depth - 4) // 6
        assert depth == 6 * per_stage + 4, "depth must be 6n + 4"
        rates = iter(drop_path_rates(drop_path, 3 * per_stage))
        self.conv1 = conv3x3(in_channels, 16)
        channels = 16
        blocks = []
        for stage in range(3):
            for block in range(per_stage):
                out = 16 * width * 2**stage
                stride = 2 if stage and block == 0 else 1
                blocks.append(PreActivationBlock(channels, out, stride, drop, next(rates)))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)
        kaiming_fan_out(self)
        for one in blocks:
            nn.init.constant_(one.bn2.weight, residual_gamma)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of images (N, in_channels, H, W)."""
        x = F.relu(self.bn(self.blocks(self.conv1(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


@models.register(
    "wrn16_4",
    "Wide ResNet 16-4 for 32x32 images (pre-activation), 2.7 M parameters",
    "Zagoruyko and Komodakis 2016",
)
def wrn16_4(
    num_classes: int = 10,
    image_shape: ImageShape = (3, 32, 32),
    residual_gamma: float = 1.0,
    drop: float = 0.0,
    drop_path: float = 0.0,
) -> nn.Module:
    """Build WRN-16-4, the network of the lectures' CIFAR-100 row."""
    need_size("wrn16_4", image_shape, 8)
    return WideResNet(16, 4, num_classes, image_shape[0], residual_gamma, drop, drop_path)
