"""AlexNet for ImageNet in torchvision's form, and a variant with batch norm.

Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014, section 5: the
network of Krizhevsky et al. 2012 without its division over two GPUs. You et al. 2017 ("Large batch
training of convolutional networks", tables 1 and 3) train both: without norms the rate cannot grow
with the batch.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from largebatch.models.registry import ImageShape, models, need_size

_CONVOLUTIONS = ((64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))
_POOLED = (0, 1, 4)  # the convolutions that a pooling follows
_SMALLEST = 63  # pixels, of which one is left


@models.register(
    "alexnet", "torchvision's AlexNet for ImageNet, 61.1 M parameters", "Krizhevsky 2014"
)
def alexnet(
    num_classes: int = 1000, image_shape: ImageShape = (3, 224, 224), drop: float = 0.5
) -> nn.Module:
    """Build AlexNet; ``drop`` precedes the two wide linear layers."""
    need_size("alexnet", image_shape, _SMALLEST)
    from torchvision.models import AlexNet

    model: Any = AlexNet(num_classes, drop)
    if image_shape[0] != 3:
        model.features[0] = nn.Conv2d(image_shape[0], 64, 11, stride=4, padding=2)
    built: nn.Module = model
    return built


@models.register(
    "alexnet_bn",
    "AlexNet with batch norm, 61.1 M parameters",
    "You et al. 2017, table 3; the norms of Hoffer's AlexNetOWT_BN",
)
def alexnet_bn(
    num_classes: int = 1000, image_shape: ImageShape = (3, 224, 224), drop: float = 0.5
) -> nn.Module:
    """Build AlexNet with a batch norm in place of the biases of all layers but the last.

    ``drop`` follows the wide linear layers. Norms come before ReLU and pooling; in the reference
    code some come after, without a rule.
    """
    need_size("alexnet_bn", image_shape, _SMALLEST)
    channels = image_shape[0]
    layers: list[nn.Module] = []
    for number, (out, kernel, stride, padding) in enumerate(_CONVOLUTIONS):
        layers += [
            nn.Conv2d(channels, out, kernel, stride, padding, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
        ]
        if number in _POOLED:
            layers.append(nn.MaxPool2d(3, stride=2))
        channels = out
    layers += [nn.AdaptiveAvgPool2d(6), nn.Flatten()]
    features = channels * 6 * 6
    for _ in range(2):
        layers += [
            nn.Linear(features, 4096, bias=False),
            nn.BatchNorm1d(4096),
            nn.ReLU(),
            nn.Dropout(drop),
        ]
        features = 4096
    return nn.Sequential(*layers, nn.Linear(features, num_classes))
