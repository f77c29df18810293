"""The small network of the default run: 8x8 digits on a laptop in seconds."""

from __future__ import annotations

from torch import nn

from largebatch.models.layers import conv3x3, kaiming_fan_out
from largebatch.models.registry import ImageShape, models, need_size


@models.register(
    "digits_cnn", "four 3x3 convolutions with batch norm for small images, 26 k parameters"
)
def digits_cnn(
    num_classes: int = 10, image_shape: ImageShape = (1, 8, 8), drop: float = 0.0
) -> nn.Module:
    """Build the network for images of at least 4x4; ``drop`` precedes the classifier."""
    need_size("digits_cnn", image_shape, 4)
    layers: list[nn.Module] = []
    channels = image_shape[0]
    for out, pool in ((16, False), (16, True), (32, False), (64, True)):
        layers += [conv3x3(channels, out), nn.BatchNorm2d(out), nn.ReLU()]
        if pool:
            layers.append(nn.MaxPool2d(2))
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
