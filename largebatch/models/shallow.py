"""C1 and C3, the shallow convolution networks of Keskar et al. 2017 on CIFAR-10 and CIFAR-100.

As in their published network definitions, there are two stages: 5x5 convolution to 64 channels,
batch norm, ReLU, 3x3 pooling of stride 2. Then come linear layers of 384 and 192, each with batch
norm, ReLU and dropout 0.5. Every layer has a bias. 1,757,834 parameters with 10 classes, 1,775,204
with 100.

Hoffer et al.'s code differs: no padding in the pooling (7x7 instead of 8x8 at the end), pooling
before the norm, no biases before norms (1,388,490 parameters). Theirs is not offered.
"""

from __future__ import annotations

from torch import nn

from largebatch.models.registry import ImageShape, models, need_size


def _shallow(name: str, num_classes: int, image_shape: ImageShape, drop: float) -> nn.Module:
    need_size(name, image_shape, 8)
    channels, height, width = image_shape
    layers: list[nn.Module] = []
    for _ in range(2):
        layers += [
            nn.Conv2d(channels, 64, 5, padding=2),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        ]
        channels, height, width = 64, (height + 1) // 2, (width + 1) // 2
    layers.append(nn.Flatten())
    features = channels * height * width
    for hidden in (384, 192):
        layers += [nn.Linear(features, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(drop)]
        features = hidden
    return nn.Sequential(*layers, nn.Linear(features, num_classes))


@models.register("c1", "shallow CIFAR-10 network, 1.76 M parameters", "Keskar et al. 2017")
def c1(
    num_classes: int = 10, image_shape: ImageShape = (3, 32, 32), drop: float = 0.5
) -> nn.Module:
    """Build C1; the size of the images is fixed once built."""
    return _shallow("c1", num_classes, image_shape, drop)


@models.register("c3", "C1 for CIFAR-100, 1.78 M parameters", "Keskar et al. 2017")
def c3(
    num_classes: int = 100, image_shape: ImageShape = (3, 32, 32), drop: float = 0.5
) -> nn.Module:
    """Build C3: the layers of C1 with 100 outputs."""
    return _shallow("c3", num_classes, image_shape, drop)
