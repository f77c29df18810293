"""Shell completion of verbs, their options, config keys and the names that keys take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from largebatch._errors import UserError, nearest
from largebatch.tasks import tasks
from largebatch.train.keys import known_keys, options, task_kind
from largebatch.train.recipe import recipe_names
from largebatch.train.registries import REGISTRIES

SHELLS = ("bash", "zsh")
WITH_KEYS = ("train", "init")
"""Verbs that take the keys of a config."""


def completion(shell: str, verbs: Mapping[str, Sequence[str]]) -> str:
    """Return the script that makes a shell complete the command ``largebatch``.

    The script holds every word, so the shell starts no Python process at a tab.

    Args:
        shell: one of :data:`SHELLS`.
        verbs: the options of each verb.

    Raises:
        UserError: the shell is not supported.
    """
    if shell not in SHELLS:
        raise UserError(f"{shell!r}: choose from {', '.join(SHELLS)}{nearest(shell, SHELLS)}")
    keys = [f"--{key}=" for key in _hints()]
    options_of_verbs = "\n".join(
        _case(verb, [*(keys if verb in WITH_KEYS else ()), *own]) for verb, own in verbs.items()
    )
    values = "\n".join(_case(f"--{key}", names) for key, names in _values())
    text = (Path(__file__).parent / "completion.sh").read_text(encoding="utf-8")
    head = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return head + (
        text.replace("@VERBS@", "\n".join(verbs))
        .replace("        @OPTIONS@", options_of_verbs)
        .replace("        @VALUES@", values)
    )


def _case(pattern: str, words: Sequence[str]) -> str:
    lines = "\n".join(words)
    return f"        {pattern}) words='{lines}' ;;"


def _hints() -> dict[str, Any]:
    """Return the type of every key, those of all tasks among them."""
    found = dict(known_keys())
    for entry in tasks:
        found |= known_keys(task_kind({"name": entry.name}, imports=False))
    return found


def _values() -> Iterator[tuple[str, list[str]]]:
    """Yield the words that a key takes, where they are known."""
    registered = {registry.key: registry.names() for registry in REGISTRIES}
    for key, hint in _hints().items():
        words = [
            str(word)
            for each in options(hint)
            if get_origin(each) is Literal
            for word in get_args(each)
        ]
        words += ["true", "false"] if bool in options(hint) else []
        words += registered.get(key, [])
        if words:
            yield key, words
    yield "recipe", recipe_names()
