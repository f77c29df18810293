"""F1, the fully connected network of the large-batch papers on MNIST.

Keskar et al. 2017 (F1: 784 inputs, five hidden layers of 512, ReLU, batch norm) in the form of the
code of Hoffer et al. 2017: linear (with bias), batch norm, ReLU. 1,462,794 parameters on MNIST.
"""

from __future__ import annotations

import math

from torch import nn

from largebatch.models.layers import perceptron
from largebatch.models.registry import ImageShape, models


@models.register(
    "f1", "784-512x5-10 perceptron with batch norm, 1.5 M parameters", "Keskar et al. 2017"
)
def f1(
    num_classes: int = 10, image_shape: ImageShape = (1, 28, 28), drop: float = 0.0
) -> nn.Module:
    """Build F1 for images of any size (N, C, H, W), flattened; ``drop`` follows each ReLU."""
    return perceptron(math.prod(image_shape), 5, num_classes, drop)
