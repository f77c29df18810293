"""C2 and C4, the deep convolution networks of Keskar et al. 2017 on CIFAR-10 and CIFAR-100.

As in their published network definitions: the convolutions of VGG-16 (Simonyan and Zisserman 2014),
each with batch norm and ReLU, dropout between the convolutions of a stage, a linear layer of 512.
Every layer has a bias.
"""

from __future__ import annotations

from torch import nn

from largebatch.models.registry import ImageShape, models, need_size

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
_DROP = 0.4  # between convolutions; 0.3 in the first stage and 0.5 around the linear layer


def _deep(name: str, num_classes: int, image_shape: ImageShape, drop: float | None) -> nn.Module:
    need_size(name, image_shape, 32)
    channels, height, width = image_shape
    layers: list[nn.Module] = []
    for stage, (out, depth) in enumerate(_STAGES):
        between = (0.3 if stage == 0 else _DROP) if drop is None else drop
        for number in range(depth):
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
            if number < depth - 1:
                layers.append(nn.Dropout(between))
            channels = out
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
        height, width = (height + 1) // 2, (width + 1) // 2
    around = 0.5 if drop is None else drop
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Dropout(around),
        nn.Linear(channels * height * width, 512),
        nn.BatchNorm1d(512),
        nn.ReLU(),
        nn.Dropout(around),
        nn.Linear(512, num_classes),
    )


@models.register("c2", "VGG-16 of Keskar for CIFAR-10, 15.0 M parameters", "Keskar et al. 2017")
def c2(
    num_classes: int = 10, image_shape: ImageShape = (3, 32, 32), drop: float | None = None
) -> nn.Module:
    """Build C2; ``drop`` is the rate of all dropout; unset: 0.3, 0.4 and 0.5 as published."""
    return _deep("c2", num_classes, image_shape, drop)


@models.register("c4", "C2 for CIFAR-100, 15.0 M parameters", "Keskar et al. 2017")
def c4(
    num_classes: int = 100, image_shape: ImageShape = (3, 32, 32), drop: float | None = None
) -> nn.Module:
    """Build C4: the layers of C2 with 100 outputs."""
    return _deep("c4", num_classes, image_shape, drop)
