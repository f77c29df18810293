"""Layers that several models share."""

from __future__ import annotations

from torch import nn


def stochastic_depth(rate: float) -> nn.Module:
    """Return a layer that drops its whole input for a sample with probability ``rate``.

    Kept inputs are divided by ``1 - rate``, so that the expectation is unchanged. Huang et al.,
    "Deep networks with stochastic depth", 2016.
    """
    if rate == 0.0:
        return nn.Identity()
    from torchvision.ops import StochasticDepth

    layer: nn.Module = StochasticDepth(rate, "row")
    return layer


def drop_path_rates(rate: float, blocks: int) -> list[float]:
    """Return the linear decay rule: block l of L (from 1) is dropped with probability rate l/L."""
    return [rate * (block + 1) / blocks for block in range(blocks)]


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution without bias (a norm follows) that keeps the size at stride 1."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


def kaiming_fan_out(model: nn.Module) -> None:
    """Draw every convolution's weights from N(0, 2/fan_out), as He et al.'s ResNet code does."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def perceptron(features: int, depth: int, outputs: int, drop: float) -> nn.Sequential:
    """Build hidden layers of 512 (linear, batch norm, ReLU, dropout) and a linear output layer.

    Args:
        features: number of values of a flattened input.
        depth: number of hidden layers.
        drop: probability to drop an activation; 0: there is no dropout.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(depth):
        layers += [nn.Linear(features, 512), nn.BatchNorm1d(512), nn.ReLU()]
        if drop:
            layers.append(nn.Dropout(drop))
        features = 512
    return nn.Sequential(*layers, nn.Linear(features, outputs))
