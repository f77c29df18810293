"""What a step does with the closure that torch lets it be given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def loss_of(closure: Callable[[], Any] | None) -> Any:
    """Call ``closure``, which computes loss and gradients anew; return its loss, None without one.

    A step runs without gradients, a closure with them.
    """
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
