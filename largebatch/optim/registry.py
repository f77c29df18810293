"""The registry of optimizers: what ``optim.name`` chooses from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from largebatch._registry import Registry
from largebatch.optim.config import OptimConfig

Factory = Callable[[OptimConfig, list[dict[str, Any]]], torch.optim.Optimizer]

optimizers: Registry[Factory] = Registry("optim.name")
"""Factories ``(config, groups) -> Optimizer``; ``groups`` are those of ``param_groups``."""
