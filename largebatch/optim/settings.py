"""Read the settings of a parameter group as plain Python values.

Schedulers, checkpoints and users leave numpy numbers, lists and tensors of one element in groups.
Such values are read anew at every step and never replaced, because a tensor may be changed in
place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from largebatch._errors import UserError

_PLAIN = (float, int, bool, str, type(None), torch.dtype)


def number(value: Any) -> float:
    """Return a setting that is a number, also if it is a tensor or array of one element.

    Raises:
        UserError: ``value`` is none of these.
    """
    if type(value) is float:
        return value
    try:
        return float(plain(value))
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"{value} where a number, or a tensor of one, is wanted") from None


def plain(value: Any) -> Any:
    """Return a setting as a number, a text, a type, None, or a tuple of them: hashable."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, (list, tuple)):
        return tuple(plain(each) for each in value)
    return value.item() if isinstance(value, Tensor) or hasattr(value, "item") else value
