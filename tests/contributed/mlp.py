"""A perceptron of two layers."""

from __future__ import annotations

from math import prod

from torch import nn

from largebatch.models.registry import ImageShape, models


@models.register("mlp", "two linear layers, batch norm between them", "Rumelhart et al. 1986")
def mlp(num_classes: int = 10, image_shape: ImageShape = (1, 8, 8)) -> nn.Module:
    """Build the model for images of one shape."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(prod(image_shape), 64, bias=False),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, num_classes),
    )
