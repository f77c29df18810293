"""Check named tensors against the expected names, shapes and types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def check_tensors(found: Any, own: Mapping[str, Any]) -> None:
    """Require that ``found`` has the names of ``own``, each with the same shape and type.

    Raises:
        ValueError: the message names the first difference.
    """
    if not isinstance(found, dict):
        raise ValueError(f"{type(found).__name__} is no mapping of names to tensors")
    for name in (*(n for n in own if n not in found), *(n for n in found if n not in own)):
        raise ValueError(f"{str(name)[:60]!r} is {'not here' if name in found else 'missing'}")
    for name, like in own.items():
        value = found[name]
        if not isinstance(like, Tensor):
            continue
        if not isinstance(value, Tensor):
            raise ValueError(f"{name}: {type(value).__name__} is no tensor")
        if value.shape != like.shape:
            raise ValueError(f"{name}: shape {tuple(value.shape)}, here {tuple(like.shape)}")
        if value.dtype != like.dtype:
            raise ValueError(f"{name}: {value.dtype}, here {like.dtype}")
