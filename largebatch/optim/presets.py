"""Presets: the switches of an optimizer under one name."""

from __future__ import annotations

from typing import Any

from largebatch._errors import UserError, nearest
from largebatch.optim.config import OptimConfig


def preset_of(config: OptimConfig, presets: dict[str, dict[str, Any]]) -> str:
    """Return ``optim.preset``, by default ``paper``.

    Raises:
        UserError: the optimizer has no such preset.
    """
    preset = config.preset or "paper"
    if preset not in presets:
        raise UserError(
            f"optim.preset={preset!r}: optim.name={config.name} has {', '.join(presets)}"
            f"{nearest(preset, presets)}"
        )
    return preset


def chosen(
    name: str, presets: dict[str, dict[str, Any]], preset: str, **given: Any
) -> dict[str, Any]:
    """Return a preset's settings with those replaced that were given (not None)."""
    if preset not in presets:
        raise UserError(f"{name}: preset={preset!r}: choose from {', '.join(presets)}")
    return {**presets[preset], **{key: value for key, value in given.items() if value is not None}}
