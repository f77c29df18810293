"""torchvision's ResNet with stochastic depth, dropout, other channels and a chosen last gamma."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from largebatch.models.layers import drop_path_rates, stochastic_depth


class DropPathBasicBlock(BasicBlock):
    """torchvision's basic block whose residual branch can be dropped."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.drop_path: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        out: Tensor = self.relu(shortcut + self.drop_path(x))
        return out


class DropPathBottleneck(Bottleneck):
    """torchvision's bottleneck block whose residual branch can be dropped."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.drop_path: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        out: Tensor = self.relu(shortcut + self.drop_path(x))
        return out


def build_resnet(
    kind: str,
    layers: list[int],
    num_classes: int,
    in_channels: int,
    residual_gamma: float,
    drop: float,
    drop_path: float,
) -> nn.Module:
    """Build torchvision's ResNet; see ``largebatch.models.resnet`` for the depths.

    Args:
        kind: ``basic`` or ``bottleneck`` blocks.
        layers: blocks in each of the four stages.
        num_classes: outputs.
        in_channels: channels of the images; if not 3, the first convolution is replaced.
        residual_gamma: initial scale of each block's last norm.
        drop: dropout before the classifier.
        drop_path: stochastic depth of the last block.
    """
    plain, dropping = {
        "basic": (BasicBlock, DropPathBasicBlock),
        "bottleneck": (Bottleneck, DropPathBottleneck),
    }[kind]
    model: Any = ResNet(dropping if drop_path else plain, layers, num_classes=num_classes)
    if in_channels != 3:
        model.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    blocks = [module for module in model.modules() if isinstance(module, plain)]
    for block, rate in zip(blocks, drop_path_rates(drop_path, len(blocks)), strict=True):
        last = block.bn2 if kind == "basic" else block.bn3
        nn.init.constant_(last.weight, residual_gamma)
        if drop_path:
            block.drop_path = stochastic_depth(rate)
    if drop:
        # Beside the pooling, which has no parameters: the classifier keeps its name.
        model.avgpool = nn.Sequential(model.avgpool, nn.Dropout(drop))
    built: nn.Module = model
    return built
