"""Keys under their former names, in files and on the command line: read, never written."""

from __future__ import annotations

from typing import Any

from largebatch.schedule.config import FORMER_PHASE_KEYS
from largebatch.tasks.config import FORMER_TARGETS


def renamed(key: str, value: Any) -> tuple[str, Any]:
    """Return a dotted key and its value under the names of today.

    Args:
        key: ``section.name``.
        value: as YAML holds it.
    """
    if key in FORMER_TARGETS:
        return "run.target", None if value is None else {FORMER_TARGETS[key]: value}
    if key == "batch.plan" and isinstance(value, list):
        return key, [_phase(phase) for phase in value]
    return key, value


def former(key: str) -> bool:
    """Return whether ``key`` or what stands below it may have a former name."""
    return key in FORMER_TARGETS or key == "batch.plan"


def renamed_tree(tree: Any) -> Any:
    """Return sections of keys, as a YAML file holds them, under the names of today."""
    if not isinstance(tree, dict):
        return tree
    return {
        section: {
            new.partition(".")[2]: value
            for new, value in (renamed(f"{section}.{name}", item) for name, item in keys.items())
        }
        if isinstance(keys, dict)
        else keys
        for section, keys in tree.items()
    }


def _phase(phase: Any) -> Any:
    if not isinstance(phase, dict):
        return phase
    return {FORMER_PHASE_KEYS.get(name, name): value for name, value in phase.items()}
