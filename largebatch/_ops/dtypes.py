"""The types that operators compute in."""

from __future__ import annotations

import torch


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type of the arithmetic and of the state kept for tensors of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32
