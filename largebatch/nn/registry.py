"""The kinds of normalisation a config can ask for."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from largebatch._registry import Registry
from largebatch.nn.config import NormConfig

NormFactory = Callable[[int, NormConfig], nn.Module]
"""``(num_features, config) -> module`` that takes the place of one batch norm."""

norms: Registry[NormFactory] = Registry("norm.kind")
