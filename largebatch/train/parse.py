"""From the command line and YAML files to a :class:`Config`, or one line that says what is wrong.

jsonargparse reads types, overrides and ``--print_config``; what is added here is a look at the
keys before it, and one line in place of its paragraphs after it.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from largebatch._documents import dump_yaml, parse_yaml, read_yaml
from largebatch._errors import UserError, nearest
from largebatch._paths import UserPath
from largebatch.schedule import Duration
from largebatch.schedule.duration import ALLOWED as DURATION_FORM
from largebatch.train.config import Config
from largebatch.train.renamed import former, renamed, renamed_tree

MODE = "largebatch"  # of jsonargparse: how it reads values
WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    UserPath: "a path (./NAME of this folder, ~/NAME of your home)",
}


def parse(arguments: Sequence[str]) -> Config:
    """Return the config that command-line arguments describe.

    Raises:
        UserError: a file cannot be read or a key is unknown or wrong; the message is one line.
    """
    from jsonargparse import ArgumentError

    arguments = list(_checked(arguments))
    try:
        return _instantiate(_parser().parse_args(arguments))
    except UserError:
        raise
    except (ArgumentError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(_one_line(str(error))) from None
    except RecursionError:
        raise UserError("config: nested too deeply") from None


def read_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Return the config that a YAML file describes (a run's ``config.yaml``).

    Args:
        overrides: options of the command line that go before it.
    """
    return parse([f"--config={path}", *overrides])


def dump(config: Config) -> str:
    """Return ``config`` as YAML that :func:`read_config` reads back, its paths absolute."""
    return dump_yaml(_plain(config))


def flat(config: Config) -> dict[str, Any]:
    """Return every key in dotted form with its value as YAML holds it."""

    def walk(value: Any, name: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict) and name.count(".") < 1:
            for key, item in value.items():
                yield from walk(item, f"{name}.{key}" if name else key)
        else:
            yield name, value

    return dict(walk(_plain(config), ""))


@lru_cache(maxsize=1)
def known_keys() -> dict[str, Any]:
    """Return the type of every ``section.key``, and of the keys that are in no section."""
    keys: dict[str, Any] = {}
    for section, kind in get_type_hints(Config).items():
        if dataclasses.is_dataclass(kind):
            keys |= {f"{section}.{name}": hint for name, hint in get_type_hints(kind).items()}
        else:  # a key by itself
            keys[section] = kind
    return keys


@lru_cache(maxsize=1)
def _parser() -> Any:
    from argparse import SUPPRESS

    import yaml
    from jsonargparse import ArgumentParser, set_dumper, set_loader
    from jsonargparse.typing import register_type

    register_type(Duration, str, Duration.parse)
    register_type(UserPath, str, UserPath)
    set_loader(MODE, _value, exceptions=(yaml.YAMLError,))
    set_dumper(MODE, dump_yaml)
    parser = ArgumentParser(
        prog="largebatch train",
        description="Train; the same command continues an interrupted run.",
        exit_on_error=False,
        allow_abbrev=False,
        parser_mode=MODE,
    )
    parser.add_argument("--config", action="config", help="YAML file; later options override it.")
    parser.add_argument(
        "--recipe", default=SUPPRESS, help="A named config; see `largebatch recipes`."
    )
    parser.add_class_arguments(Config)
    return parser


def _value(text: str) -> Any:
    """Read a value of the command line, or a checked file, for jsonargparse."""
    import yaml

    try:
        return parse_yaml(text, "value")
    except UserError as error:
        raise yaml.YAMLError(str(error)) from None


def _instantiate(namespace: Any) -> Config:
    parts = _parser().instantiate(namespace)
    config = Config(**{field.name: parts[field.name] for field in dataclasses.fields(Config)})
    for key, hint in known_keys().items():
        section, _, name = key.partition(".")
        value = getattr(config, section)
        if (getattr(value, name) if name else value) is None and NoneType not in _options(hint):
            raise UserError(f"{key}=null: expected {_expected(hint)}")
    return config


def _checked(arguments: Sequence[str]) -> Iterator[str]:
    """Check option names and files before the parser sees them; turn recipes into files."""
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("--"):
            raise UserError(f"{argument!r}: options are written --section.key=value")
        name, equals, value = argument[2:].partition("=")
        name = name.rstrip("+")
        if name in ("help", "print_config"):
            yield argument
            continue
        if name not in known_keys() and name not in ("config", "recipe") and not former(name):
            parent = name.rpartition(".")[0]
            if parent not in known_keys() or (
                parent in known_keys() and "." not in parent
            ):  # --optim.options.key=... is nested
                raise UserError(_unknown(name))
        if not equals:
            value = next(rest, "")
            if not value or value.startswith("--"):
                raise UserError(f"--{name}: a value is missing, write --{name}=VALUE")
        if name in ("config", "recipe"):
            tree = _tree(_path(name, value) if name == "config" else _recipe(value))
            if tree:
                yield f"--config={dump_yaml(tree)}"
            continue
        if former(name):
            name, content = renamed(name, parse_yaml(value, f"--{name}"))
            argument, value = f"--{name}", dump_yaml(content, in_one_line=True)
        kinds = _options(known_keys().get(name))
        if UserPath in kinds and value != "null":
            value = _path(name, value)
        elif str not in kinds and value[:1] in ("[", "{"):
            parse_yaml(value, f"--{name}")
        yield f"{argument.partition('=')[0]}={value}"


def _path(name: str, text: str) -> UserPath:
    try:
        return UserPath(text)
    except UserError as error:
        raise UserError(f"--{name}: {error}") from None


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship with the package."""
    return sorted(path.stem for path in _recipe_folder().glob("*.yaml"))


def _recipe_folder() -> Path:
    return Path(__file__).parent.parent / "recipes"


def _recipe(name: str) -> Path:
    path = _recipe_folder() / f"{name}.yaml"
    if name not in recipe_names():
        choices = recipe_names()
        raise UserError(
            f"recipe={name!r}: choose from {', '.join(choices)}{nearest(name, choices)}"
        )
    return path


def _tree(path: str | Path) -> Any:
    """Return the sections of keys in a YAML file, every key a known one."""
    name = f"config={str(path)!r}"
    tree = renamed_tree(read_yaml(path, name))
    check_keys(tree, str(path))
    return tree


def check_keys(tree: Any, where: str) -> None:
    """Refuse a tree that is not sections of known keys.

    Raises:
        UserError: naming the key and the nearest known one.
    """
    if tree is None:
        return
    if not isinstance(tree, dict):
        raise UserError(f"config={where!r}: expected sections of keys, got {_short(tree)}")
    sections = get_type_hints(Config)
    for section, keys in tree.items():
        if section not in sections:
            raise UserError(_unknown(str(section)))
        if section in known_keys():
            continue
        if not isinstance(keys, dict):
            raise UserError(f"{section}={_short(keys)}: a section of keys, not a value")
        for name in keys:
            if f"{section}.{name}" not in known_keys():
                raise UserError(_unknown(f"{section}.{name}"))


def _unknown(name: str) -> str:
    section = name.partition(".")[0]
    near = nearest(name, known_keys())
    sections = list(get_type_hints(Config))
    if section in sections:
        keys = [key.partition(".")[2] for key in known_keys() if key.startswith(f"{section}.")]
        return f"unknown key {name!r}{near}: {section} has {', '.join(keys)}"
    return f"unknown key {name!r}{near}: sections are {', '.join(sections)}"


def _one_line(message: str) -> str:
    """Collapse a parser's message into KEY=VALUE: what is allowed."""
    keys = re.findall(r'Parser key "([^"]+)"', message)
    if not keys:
        return f"config: {_short(message)}"
    key, inner = keys[0], keys[1:]
    hint = known_keys().get(key)
    unknown = re.search(r"[Oo]ption '([^']+)' is not accepted", message)
    if hint is not None and unknown:
        names = [field.name for kind in _dataclasses_in(hint) for field in dataclasses.fields(kind)]
        near = nearest(unknown[1], names)
        return f"unknown key '{key}.{unknown[1]}'{near}: {key} has {', '.join(names)}"
    for name in inner:
        for kind in _dataclasses_in(hint):
            hint = get_type_hints(kind).get(name, hint)
    found = re.search(r"(?:Got|Given) value: (.*?)(?:\s*\n|$)", message)
    value = found[1] if found else (re.search(r"duration (.*?): ", message) or ("", "?"))[1]
    return f"{'.'.join([key, *inner])}={_short(value)}: expected {_expected(hint)}"


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _dataclasses_in(hint: Any) -> list[Any]:
    found = [option for option in _options(hint) if dataclasses.is_dataclass(option)]
    for option in _options(hint):
        found += [a for a in get_args(option) if dataclasses.is_dataclass(a)]
    return found


def _expected(hint: Any) -> str:
    """Say in words what a type allows."""
    words = []
    for option in _options(hint):
        if option is NoneType:
            words.append("null")
        elif get_origin(option) is Literal:
            words += [str(choice) for choice in get_args(option)]
        elif option is Duration:
            words.append(f"a duration ({DURATION_FORM})")
        elif get_origin(option) in (list, tuple):
            item = get_args(option)[0]
            count = f"{len(get_args(option))} of them, " if get_origin(option) is tuple else ""
            names = (
                [f.name for f in dataclasses.fields(item)] if item in _dataclasses_in(item) else ()
            )
            words.append(
                f"a list of {{{', '.join(names)}}}"
                if names
                else f"a list, {count}each {_expected(item)}"
            )
        elif get_origin(option) is dict or option is dict:
            words.append("a mapping of names to values")
        else:
            words.append(WORDS.get(option, getattr(option, "__name__", str(option))))
    return " or ".join(words)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Duration):
        return str(value)
    if isinstance(value, UserPath):
        return os.path.abspath(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _short(value: Any, limit: int = 100) -> str:
    text = " ".join((value if isinstance(value, str) else repr(value)).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def recipe_summary(name: str) -> str:
    """Return the comment that heads a recipe, in one line."""
    first = _recipe(name).read_text(encoding="utf-8").splitlines()[0]
    return first.lstrip("# ")
