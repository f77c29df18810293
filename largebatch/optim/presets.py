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
    name: str,
    presets: dict[str, dict[str, Any]],
    preset: str,
    meant: dict[str, Any],
    **given: Any,
) -> dict[str, Any]:
    """Return a preset's settings, overridden by the settings that were given (not None).

    Args:
        meant: settings translated from arguments of other optimizers.

    Raises:
        UserError: no such preset, or a setting that is given twice.
    """
    if preset not in presets:
        raise UserError(f"{name}: preset={preset!r}: choose from {', '.join(presets)}")
    explicit = {key: value for key, value in given.items() if value is not None}
    for key, value in meant.items():
        if explicit.setdefault(key, value) != value:
            raise UserError(
                f"{name}: {key}={explicit[key]!r}: another optimizer's argument says {value!r}"
            )
    return {**presets[preset], **explicit}
