"""NF-ResNet: residual networks without norms, by bookkeeping of variances.

Brock, De, Smith, "Characterizing signal propagation to close the performance gap in unnormalized
ResNets", 2021, in the form of the authors' code. A block is

    x <- shortcut + alpha SkipInit(branch(gain relu(x) / beta))

where beta^2 is the variance of x at initialisation if a branch has variance 1. Every block adds
alpha^2 to the variance. The first block of a stage, whose shortcut is a convolution of the scaled
activation, sets it back to 1. The shortcut's convolution is strided, as in the paper (timm pools
first). Padding is symmetric, as is usual in PyTorch.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from largebatch.models.layers import drop_path_rates, stochastic_depth
from largebatch.models.registry import ImageShape, models, need_size
from largebatch.nn import ACTIVATION_GAINS, ScaledWSConv2d, SkipInit

ALPHA = 0.2
GAIN = ACTIVATION_GAINS["relu"]


class NormFreeBlock(nn.Module):
    """Bottleneck block, with activations before convolutions.

    Args:
        in_channels: channels of the input.
        channels: channels of the output; the 3x3 convolution has a quarter of them.
        stride: stride of the 3x3 convolution and of the shortcut.
        beta: expected standard deviation of the input.
        alpha: factor on the branch.
        gain: initial value of SkipInit's gain.
        drop_path: probability to drop the branch.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        beta: float,
        alpha: float = ALPHA,
        gain: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.alpha, self.beta = alpha, beta
        width = channels // 4
        self.conv1 = ScaledWSConv2d(in_channels, width, 1)
        self.conv2 = ScaledWSConv2d(width, width, 3, stride, padding=1)
        self.conv3 = ScaledWSConv2d(width, channels, 1)
        self.shortcut: ScaledWSConv2d | None = None
        if stride != 1 or in_channels != channels:
            self.shortcut = ScaledWSConv2d(in_channels, channels, 1, stride)
        self.drop_path = stochastic_depth(drop_path)
        self.skip_init = SkipInit(gain)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(x) * (GAIN / self.beta)
        shortcut = x if self.shortcut is None else self.shortcut(active)
        branch = F.relu(self.conv1(active)) * GAIN
        branch = self.conv3(F.relu(self.conv2(branch)) * GAIN)
        total: Tensor = shortcut + self.alpha * self.skip_init(self.drop_path(branch))
        return total


class NFResNet(nn.Module):
    """Normaliser-free bottleneck ResNet.

    Args:
        depths: blocks in each of the four stages.
        num_classes: outputs.
        in_channels: channels of the images (N, in_channels, H, W).
        residual_gamma: initial value of every block's SkipInit.
        drop: dropout before the classifier.
        drop_path: stochastic depth of the last block.
        alpha: factor on every branch.
    """

    def __init__(
        self,
        depths: tuple[int, ...] = (3, 4, 6, 3),
        num_classes: int = 1000,
        in_channels: int = 3,
        residual_gamma: float = 0.0,
        drop: float = 0.0,
        drop_path: float = 0.0,
        alpha: float = ALPHA,
    ) -> None:
        super().__init__()
        self.stem = ScaledWSConv2d(in_channels, 64, 7, 2, padding=3, bias=False)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        channels, variance = 64, 1.0
        stages = []
        for stage, depth in enumerate(depths):
            blocks = []
            for block in range(depth):
                out, stride = 256 * 2**stage, 2 if stage and block == 0 else 1
                beta = math.sqrt(variance)
                blocks.append(
                    NormFreeBlock(channels, out, stride, beta, alpha, residual_gamma, next(rates))
                )
                channels = out
                variance = (1.0 if block == 0 else variance) + alpha**2
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.drop = nn.Dropout(drop)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, ScaledWSConv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of images (N, in_channels, H, W)."""
        x = self.stages(self.pool(self.stem(x)))
        logits: Tensor = self.fc(self.drop((F.relu(x) * GAIN).mean((2, 3))))
        return logits


@models.register(
    "nf_resnet50", "ResNet-50 without norms for ImageNet, 25.6 M parameters", "Brock et al. 2021"
)
def nf_resnet50(
    num_classes: int = 1000,
    image_shape: ImageShape = (3, 224, 224),
    residual_gamma: float = 0.0,
    drop: float = 0.0,
    drop_path: float = 0.0,
) -> nn.Module:
    """Build NF-ResNet-50; published runs have ``drop_path`` 0.1 and clip gradients adaptively."""
    need_size("nf_resnet50", image_shape, 32)
    return NFResNet((3, 4, 6, 3), num_classes, image_shape[0], residual_gamma, drop, drop_path)
