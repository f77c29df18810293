"""VGG for 32x32 images: the convolutions of Simonyan and Zisserman 2014, batch norm after each.

VGG-16 has thirteen of them, five poolings to one pixel and one linear layer.

14,724,042 parameters with 10 classes. The two wide linear layers of the ImageNet network are left
out, as is common on CIFAR (Zagoruyko, "92.45% on CIFAR-10 in Torch", 2015, keeps one of 512).

VGG-9 is the network whose loss surfaces Li et al. draw ("Visualizing the loss landscape of neural
nets", 2018): seven convolutions, three poolings, linear layers of 256 and of the classes, biases
everywhere. 2,789,706 parameters with 10 classes.
"""

from __future__ import annotations

from torch import nn

from largebatch.models.layers import conv3x3, kaiming_fan_out
from largebatch.models.registry import ImageShape, models, need_size

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


@models.register(
    "vgg_cifar",
    "VGG-16 with batch norm for 32x32 images, 14.7 M parameters",
    "Simonyan and Zisserman 2014",
)
def vgg_cifar(
    num_classes: int = 10, image_shape: ImageShape = (3, 32, 32), drop: float = 0.0
) -> nn.Module:
    """Build VGG-16 for images of at least 32x32; ``drop`` precedes the classifier."""
    need_size("vgg_cifar", image_shape, 32)
    channels = image_shape[0]
    layers: list[nn.Module] = []
    for out, depth in _STAGES:
        for _ in range(depth):
            layers += [conv3x3(channels, out), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        layers.append(nn.MaxPool2d(2))
    model = nn.Sequential(
        *layers,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(drop),
        nn.Linear(channels, num_classes),
    )
    kaiming_fan_out(model)
    return model


@models.register(
    "vgg9", "VGG-9 with batch norm for 32x32 images, 2.8 M parameters", "Li et al. 2018"
)
def vgg9(
    num_classes: int = 10, image_shape: ImageShape = (3, 32, 32), drop: float = 0.0
) -> nn.Module:
    """Build VGG-9; ``drop`` precedes the classifier."""
    need_size("vgg9", image_shape, 8)
    channels, height, width = image_shape
    layers: list[nn.Module] = []
    for out, depth in _STAGES[:3]:
        for _ in range(depth):
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
        height, width = (height + 1) // 2, (width + 1) // 2
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Linear(channels * height * width, channels),
        nn.BatchNorm1d(channels),
        nn.ReLU(),
        nn.Dropout(drop),
        nn.Linear(channels, num_classes),
    )
