"""DenseNets: every layer reads the outputs of all earlier layers of its block.

Huang et al., "Densely connected convolutional networks", 2017: DenseNet-BC (bottlenecks,
compression) with 100 layers and growth 12 for 32x32 images, and torchvision's DenseNet-169. Norm
and ReLU come before each convolution.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from largebatch.models.layers import conv3x3, kaiming_fan_out
from largebatch.models.registry import ImageShape, models, need_size


class DenseLayer(nn.Module):
    """1x1 convolution to 4 ``growth`` channels, 3x3 to ``growth``, concatenated with the input."""

    def __init__(self, channels: int, growth: int, drop: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = conv3x3(4 * growth, growth)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(F.relu(self.bn1(x)))
        new = self.conv2(F.relu(self.bn2(new)))
        return torch.cat((x, self.drop(new)), 1)


def _densenet_bc(
    depth: int, growth: int, num_classes: int, channels: int, drop: float
) -> nn.Module:
    """Return three blocks of (depth - 4) / 6 layers; half of the channels pass between them."""
    layers: list[nn.Module] = [conv3x3(channels, 2 * growth)]
    width = 2 * growth
    for block in range(3):
        for _ in range((depth - 4) // 6):
            layers.append(DenseLayer(width, growth, drop))
            width += growth
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
        if block < 2:
            layers += [nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)]
            width //= 2
    classifier = nn.Linear(width, num_classes)
    nn.init.zeros_(classifier.bias)
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), classifier)
    kaiming_fan_out(model)
    return model


@models.register(
    "densenet_bc_100_12",
    "DenseNet-BC-100, growth 12, for 32x32 images, 0.77 M parameters",
    "Huang et al. 2017",
)
def densenet_bc_100_12(
    num_classes: int = 100, image_shape: ImageShape = (3, 32, 32), drop: float = 0.0
) -> nn.Module:
    """Build DenseNet-BC; ``drop`` follows every 3x3 convolution (0.2 without augmentation)."""
    need_size("densenet_bc_100_12", image_shape, 8)
    return _densenet_bc(100, 12, num_classes, image_shape[0], drop)


@models.register(
    "densenet169", "torchvision's DenseNet-169 for ImageNet, 14.1 M parameters", "Huang et al. 2017"
)
def densenet169(
    num_classes: int = 1000, image_shape: ImageShape = (3, 224, 224), drop: float = 0.0
) -> nn.Module:
    """Build DenseNet-169; ``drop`` follows every 3x3 convolution."""
    need_size("densenet169", image_shape, 32)
    from torchvision.models import DenseNet

    model: Any = DenseNet(32, (6, 12, 32, 32), 64, drop_rate=drop, num_classes=num_classes)
    if image_shape[0] != 3:
        model.features.conv0 = nn.Conv2d(image_shape[0], 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(model.features.conv0.weight)
    built: nn.Module = model
    return built
