"""Evaluate the closure that ``torch.optim.Optimizer.step`` may be given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def loss_of(closure: Callable[[], Any] | None) -> Any:
    """Call ``closure`` and return its loss; return None without a closure.

    Optimizer steps run without autograd. It is switched on for the closure, which computes loss and
    gradients.
    """
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
