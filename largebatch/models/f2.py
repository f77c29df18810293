"""F2, the fully connected network of Keskar et al. 2017 on TIMIT, table 1 and appendix B.

360 inputs (frames of speech), seven hidden layers of 512 with batch norm and ReLU, 1,973 outputs:
2,780,085 parameters. TIMIT is not free; any data of this shape will do, as images of 1 x 1 x 360.
"""

from __future__ import annotations

import math

from torch import nn

from largebatch.models.layers import perceptron
from largebatch.models.registry import ImageShape, models


@models.register(
    "f2", "360-512x7-1973 perceptron with batch norm, 2.8 M parameters", "Keskar et al. 2017"
)
def f2(
    num_classes: int = 1973, image_shape: ImageShape = (1, 1, 360), drop: float = 0.0
) -> nn.Module:
    """Build F2 for inputs of any size (N, C, H, W), flattened; ``drop`` follows each ReLU."""
    return perceptron(math.prod(image_shape), 7, num_classes, drop)
