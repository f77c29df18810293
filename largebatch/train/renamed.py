"""Accept config keys under their former names, in files and on the command line.

Former names are read, but never written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from largebatch._documents import dump_yaml, parse_yaml
from largebatch._errors import UserError
from largebatch.schedule.config import FORMER_PHASE_KEYS
from largebatch.tasks.config import FORMER_TARGETS


def renamed(key: str, value: Any) -> tuple[str, Any]:
    """Return a dotted key and its value under their present names.

    Args:
        key: ``section.name``.
        value: the value in YAML's types.

    Raises:
        UserError: a key is given under both of its names.
    """
    if key in FORMER_TARGETS:
        return "run.target", None if value is None else {FORMER_TARGETS[key]: value}
    if key == "batch.plan" and isinstance(value, list):
        return key, [_phase(f"{key}[{i}]", phase) for i, phase in enumerate(value)]
    return key, value


def former(key: str) -> bool:
    """Return whether ``key``, or a key below it, may have a former name."""
    return key in FORMER_TARGETS or key == "batch.plan"


def renamed_tree(tree: Any) -> Any:
    """Return the sections of a YAML file with all keys under their present names.

    Raises:
        UserError: a key is given under both of its names.
    """
    if not isinstance(tree, dict):
        return tree
    return {
        section: _section(section, keys) if isinstance(keys, dict) else keys
        for section, keys in tree.items()
    }


def remarks(option: str, text: str | None, tree: Any) -> Iterator[str]:
    """Yield remarks on aliases of the run's target in an option or a file."""
    for key in FORMER_TARGETS:
        section, _, name = key.partition(".")
        keys = tree.get(section) if isinstance(tree, dict) else None
        if option == key and text is not None:
            yield _read_as(key, parse_yaml(text, key))
        elif isinstance(keys, dict) and name in keys:
            yield _read_as(key, keys[name])


def two_names(first: str, second: str) -> str:
    """Return the error that a key is given under two names."""
    return f"{first} and {second} are two names of one key: leave one of them out"


def _read_as(key: str, value: Any) -> str:
    today, content = renamed(key, value)
    return f"{key} is read as {today}={dump_yaml(content, in_one_line=True).strip()}"


def _section(section: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, value in keys.items():
        key, content = renamed(f"{section}.{name}", value)
        if key in origins:
            raise UserError(two_names(origins[key], f"{section}.{name}"))
        origins[key] = f"{section}.{name}"
        found[key.partition(".")[2]] = content
    return found


def _phase(where: str, phase: Any) -> Any:
    if not isinstance(phase, dict):
        return phase
    for old, new in FORMER_PHASE_KEYS.items():
        if old in phase and new in phase:
            raise UserError(two_names(f"{where}.{new}", f"{where}.{old}"))
    return {FORMER_PHASE_KEYS.get(name, name): value for name, value in phase.items()}
