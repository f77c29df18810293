"""ShuffleNet: 1x1 convolutions in groups whose channels are shuffled.

Zhang et al., "ShuffleNet: an extremely efficient convolutional neural network for mobile devices",
2018, table 1, three groups. torchvision has only its successor.

This is the form of the table of Hoffer et al. 2018 ("Fix your classifier"): convolutions have
biases, no norm follows the first convolution, and the middle width of a unit is a quarter of what
its branch outputs. The table gives 1,826,555 parameters, one more than these layers have. The
classifier's 960,000 weights are 52.56% of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from largebatch.models.layers import kaiming_fan_out
from largebatch.models.registry import ImageShape, models, need_size

GROUPS = 3
_STAGES = ((240, 4), (480, 8), (960, 4))


class ShuffleUnit(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1, beside a shortcut.

    The first unit of a stage halves the size and appends the pooled input to the branch.
    """

    def __init__(self, in_channels: int, channels: int, first_groups: int) -> None:
        super().__init__()
        self.halves = in_channels != channels
        out = channels - in_channels if self.halves else channels
        middle = out // 4
        self.conv1 = nn.Conv2d(in_channels, middle, 1, groups=first_groups)
        self.bn1 = nn.BatchNorm2d(middle)
        stride = 2 if self.halves else 1
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, 1, groups=middle)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, out, 1, groups=GROUPS)
        self.bn3 = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        branch = F.channel_shuffle(F.relu(self.bn1(self.conv1(x))), GROUPS)
        branch = self.bn3(self.conv3(self.bn2(self.conv2(branch))))
        if self.halves:
            return F.relu(torch.cat((F.avg_pool2d(x, 3, 2, 1), branch), 1))
        return F.relu(x + branch)


@models.register(
    "shufflenet_v1",
    "ShuffleNet 1x in three groups for ImageNet, 1.83 M parameters",
    "Zhang et al. 2018",
)
def shufflenet_v1(
    num_classes: int = 1000, image_shape: ImageShape = (3, 224, 224), drop: float = 0.0
) -> nn.Module:
    """Build ShuffleNet; ``drop`` precedes the classifier."""
    need_size("shufflenet_v1", image_shape, 32)
    layers: list[nn.Module] = [
        nn.Conv2d(image_shape[0], 24, 3, 2, 1),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]
    channels = 24
    for out, depth in _STAGES:
        for _ in range(depth):
            # 24 channels are too few for groups.
            layers.append(ShuffleUnit(channels, out, 1 if channels == 24 else GROUPS))
            channels = out
    model = nn.Sequential(
        *layers,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(drop),
        nn.Linear(channels, num_classes),
    )
    kaiming_fan_out(model)
    return model
