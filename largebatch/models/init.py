"""Initialise weights by a chosen rule."""

from __future__ import annotations

from typing import Literal

from torch import nn
from torch.nn.modules.conv import _ConvNd


def initialize(model: nn.Module, rule: Literal["default", "kaiming", "xavier"]) -> None:
    """Redraw the weights of every linear and convolution layer; biases become 0.

    Args:
        model: changed in place; norms keep their scale and shift.
        rule: ``kaiming`` draws from N(0, 2/fan_in) (He et al. 2015), ``xavier`` uniformly from
            +-sqrt(6/(fan_in + fan_out)) (Glorot and Bengio 2010), ``default`` changes nothing.
    """
    if rule == "default":
        return
    for module in model.modules():
        if isinstance(module, (nn.Linear, _ConvNd)):
            if rule == "kaiming":
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            else:
                nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
