"""The convolutional network of the Adam paper: c64-c64-c128-1000.

Kingma and Ba, "Adam: a method for stochastic optimization", 2015, section 6.3: three stages of 5x5
convolutions and 3x3 poolings of stride 2, a linear layer of 1,000, on CIFAR-10 with dropout before
the first layer and the linear one.
"""

from __future__ import annotations

from torch import nn

from largebatch.models.registry import ImageShape, models, need_size


@models.register(
    "adam_cnn",
    "c64-c64-c128-1000 without norms for 32x32 images, 2.4 M parameters",
    "Kingma and Ba 2015, figure 3",
)
def adam_cnn(
    num_classes: int = 10, image_shape: ImageShape = (3, 32, 32), drop: float = 0.0
) -> nn.Module:
    """Build the network; ``drop`` is the dropout of the inputs and before the linear layer."""
    need_size("adam_cnn", image_shape, 8)
    channels, height, width = image_shape
    layers: list[nn.Module] = [nn.Dropout(drop)]
    for out in (64, 64, 128):
        layers += [
            nn.Conv2d(channels, out, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        ]
        channels, height, width = out, (height + 1) // 2, (width + 1) // 2
    model = nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Dropout(drop),
        nn.Linear(channels * height * width, 1000),
        nn.ReLU(),
        nn.Linear(1000, num_classes),
    )
    for module in model:
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model
