"""The smallest model: one linear map, whose training under squared loss is fully understood."""

from __future__ import annotations

import math

from torch import nn

from largebatch.models.registry import ImageShape, models


@models.register(
    "linear",
    "one linear map of the flattened input, without bias, from zero",
    "Widrow and Hoff 1960",
)
def linear(num_classes: int = 10, image_shape: ImageShape = (1, 8, 8)) -> nn.Module:
    """Build the map for inputs (N, C, H, W) of any size."""
    layer = nn.Linear(math.prod(image_shape), num_classes, bias=False)
    nn.init.zeros_(layer.weight)
    return nn.Sequential(nn.Flatten(), layer)
