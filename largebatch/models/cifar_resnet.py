"""ResNets for 32x32 images, with 1x1 projection shortcuts.

He et al. 2015, section 4.2. Where a stage changes size, the shortcut is a projection (their option
B, also that of Hoffer's code). With it ResNet-56 has exactly 855,770 parameters; identity shortcuts
(option A) would give 853,018.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from largebatch.models.layers import conv3x3, drop_path_rates, kaiming_fan_out, stochastic_depth
from largebatch.models.registry import ImageShape, models, need_size


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; ReLU after the sum."""

    def __init__(self, in_channels: int, channels: int, stride: int, drop_path: float) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.drop_path = stochastic_depth(drop_path)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(self.shortcut(x) + self.drop_path(branch))


class CifarResNet(nn.Module):
    """ResNet of ``depth`` = 6n + 2 layers: three stages of n blocks, 16, 32 and 64 channels wide.

    Args:
        depth: 8, 20, 32, 44, 56, ...
        width: factor on the channels.
        num_classes: outputs.
        in_channels: channels of the images (N, in_channels, H, W).
        residual_gamma: initial scale of each block's last norm.
        drop: dropout before the classifier.
        drop_path: stochastic depth of the last block.
    """

    def __init__(
        self,
        depth: int,
        width: int = 1,
        num_classes: int = 10,
        in_channels: int = 3,
        residual_gamma: float = 1.0,
        drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        per_stage = (depth - 2) // 6
        assert depth == 6 * per_stage + 2, "depth must be 6n + 2"
        rates = iter(drop_path_rates(drop_path, 3 * per_stage))
        channels = 16 * width
        self.conv1 = conv3x3(in_channels, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        stages = []
        for stage in range(3):
            blocks = []
            for block in range(per_stage):
                out = 16 * width * 2**stage
                stride = 2 if stage and block == 0 else 1
                blocks.append(ResidualBlock(channels, out, stride, next(rates)))
                channels = out
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.drop = nn.Dropout(drop)
        self.fc = nn.Linear(channels, num_classes)
        kaiming_fan_out(self)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                nn.init.constant_(module.bn2.weight, residual_gamma)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of images (N, in_channels, H, W)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.drop(x.mean((2, 3))))
        return logits


def _register(name: str, depth: int, width: int, summary: str, source: str) -> None:
    @models.register(name, summary, source)
    def cifar_resnet(
        num_classes: int = 10,
        image_shape: ImageShape = (3, 32, 32),
        residual_gamma: float = 1.0,
        drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> nn.Module:
        need_size(name, image_shape, 8)
        return CifarResNet(
            depth, width, num_classes, image_shape[0], residual_gamma, drop, drop_path
        )


for _depth, _count in ((8, "78 k"), (20, "272 k"), (32, "467 k"), (44, "661 k"), (56, "856 k")):
    _register(
        f"cifar_resnet{_depth}",
        _depth,
        1,
        f"ResNet-{_depth} for 32x32 images, projection shortcuts, {_count} parameters",
        "He et al. 2015, section 4.2",
    )
_register(
    "wrn16_4_post",
    14,
    4,
    "Wide ResNet 16-4 in the post-activation form of Hoffer's code, 2.8 M parameters",
    "Hoffer et al. 2017, reference code",
)
