"""All config keys: those of every section, and those of the task named by ``task.name``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import field, fields, is_dataclass, make_dataclass
from functools import lru_cache, partial
from keyword import iskeyword
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from largebatch._errors import UserError, nearest
from largebatch._paths import UserPath
from largebatch.schedule import Duration
from largebatch.schedule.duration import ALLOWED as DURATION_FORM
from largebatch.tasks import TaskConfig, config_of, tasks
from largebatch.train.config import Config

TaskKind: TypeAlias = Callable[[], TaskConfig]
"""A dataclass derived from TaskConfig."""
WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    UserPath: "a path (./NAME of this folder, ~/NAME of your home)",
}


def task_kind(section: Mapping[str, Any], imports: bool) -> TaskKind:
    """Return the dataclass of a ``task`` section by the task's name in the section.

    Args:
        section: the section's keys with values of YAML's types.
        imports: whether a user's task may be imported to ask for its keys. Otherwise the keys in
            the section are accepted as they are, with any values.

    Raises:
        UserError: there is no such task, or its keys are not valid.
    """
    name = section.get("name", TaskConfig.name)
    if not isinstance(name, str):
        return config_of(TaskConfig.name)  # the parser says what is wrong with it
    if imports or not tasks.imports(name):
        return config_of(name)
    for key in section:
        if not isinstance(key, str) or not key.isidentifier() or iskeyword(key):
            raise UserError(f"task: {key!r} is no key")
    unread = [
        (key, Any, field(default_factory=partial(deepcopy, value)))
        for key, value in section.items()
        if key != "name"
    ]
    return make_dataclass("UnreadTaskConfig", unread, bases=(TaskConfig,))


@lru_cache(maxsize=8)
def config_with(task: TaskKind) -> type[Config]:
    """Return :class:`Config` with a task's keys in its section ``task``, and with its defaults."""
    kinds = get_type_hints(Config)
    defaults: Mapping[str, Mapping[str, Any]] = getattr(task, "defaults", {})
    sections = [("task", task, field(default_factory=task))]
    for name, values in defaults.items():
        sections.append((name, kinds[name], field(default_factory=partial(kinds[name], **values))))
    return make_dataclass(
        "Config", sections, bases=(Config,), namespace={"__doc__": Config.__doc__}
    )


@lru_cache(maxsize=8)
def known_keys(task: TaskKind | None = None) -> dict[str, Any]:
    """Return the type of every ``section.key``, and of every key without a section.

    Args:
        task: dataclass of the section ``task``; None: that of the default task.
    """
    keys: dict[str, Any] = {}
    for section, kind in get_type_hints(config_with(task or task_kind({}, False))).items():
        if is_dataclass(kind):
            hints = get_type_hints(kind)
            keys |= {f"{section}.{each.name}": hints[each.name] for each in fields(kind)}
        else:  # a key by itself
            keys[section] = kind
    return keys


def check_keys(tree: Any, where: str, known: Mapping[str, Any]) -> None:
    """Refuse a tree that does not consist of sections of known keys.

    Raises:
        UserError: the message names the key and the nearest known key.
    """
    if tree is None:
        return
    if not isinstance(tree, dict):
        raise UserError(f"config={where!r}: expected sections of keys, got {short(tree)}")
    sections = {key.partition(".")[0] for key in known}
    for section, keys in tree.items():
        if section not in sections:
            raise UserError(unknown(str(section), known))
        if section in known:
            continue
        if not isinstance(keys, dict):
            raise UserError(f"{section}={short(keys)}: a section of keys, not a value")
        for name in keys:
            if f"{section}.{name}" not in known:
                raise UserError(unknown(f"{section}.{name}", known))


def unknown(name: str, known: Mapping[str, Any]) -> str:
    """Return the error that there is no key ``name``, with the known keys."""
    section = name.partition(".")[0]
    near = nearest(name, known)
    keys = [key.partition(".")[2] for key in known if key.startswith(f"{section}.")]
    if keys:
        return f"unknown key {name!r}{near}: {section} has {', '.join(keys)}"
    sections = dict.fromkeys(key.partition(".")[0] for key in known)
    return f"unknown key {name!r}{near}: sections are {', '.join(sections)}"


def options(hint: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the one type."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def dataclasses_in(hint: Any) -> list[Any]:
    """Return the dataclasses that a type names, alone or as the items of a list."""
    found = [option for option in options(hint) if is_dataclass(option)]
    for option in options(hint):
        found += [a for a in get_args(option) if is_dataclass(a)]
    return found


def expected(hint: Any) -> str:
    """Return in words what values a type allows."""
    words = []
    for option in options(hint):
        if option is NoneType:
            words.append("null")
        elif get_origin(option) is Literal:
            words += [str(choice) for choice in get_args(option)]
        elif option is Duration:
            words.append(f"a duration ({DURATION_FORM})")
        elif get_origin(option) in (list, tuple, Sequence):
            item = get_args(option)[0]
            count = f"{len(get_args(option))} of them, " if get_origin(option) is tuple else ""
            names = [f.name for f in fields(item)] if item in dataclasses_in(item) else ()
            words.append(
                f"a list of {{{', '.join(names)}}}"
                if names
                else f"a list, {count}each {expected(item)}"
            )
        elif get_origin(option) is dict or option is dict:
            words.append("a mapping of names to values")
        else:
            words.append(WORDS.get(option, getattr(option, "__name__", str(option))))
    return " or ".join(words)


def short(value: Any, limit: int = 100) -> str:
    """Return a value in one line of at most ``limit`` characters."""
    text = " ".join((value if isinstance(value, str) else repr(value)).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
