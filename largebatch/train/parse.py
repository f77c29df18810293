"""Read the command line and YAML files into a :class:`Config`, or raise a one-line error.

jsonargparse reads types, overrides and ``--print_config``. This module adds a check of the keys
beforehand, and one-line errors in place of jsonargparse's paragraphs.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import NoneType
from typing import Any, get_type_hints

from largebatch._documents import dump_yaml, parse_yaml, read_yaml
from largebatch._errors import UserError, nearest
from largebatch._paths import UserPath
from largebatch.processes.environment import detect
from largebatch.processes.lifetime import LAUNCHER_VARIABLE
from largebatch.schedule import Duration
from largebatch.train.config import Config
from largebatch.train.keys import (
    TaskKind,
    check_keys,
    config_with,
    dataclasses_in,
    expected,
    known_keys,
    options,
    short,
    task_kind,
    unknown,
)
from largebatch.train.recipe import recipe_file
from largebatch.train.renamed import former, remarks, renamed, renamed_tree, two_names

MODE = "largebatch"  # of jsonargparse: how it reads values
FLAGS = ("help", "print_config")
FILES = ("config", "recipe")


@dataclass(frozen=True)
class Written:
    """One option on the command line.

    Attributes:
        option: the option as written, ``--section.key``, without the value.
        value: the value's text; None if it is missing or does not belong to the option.
        tree: the keys of the file or recipe that the option names.
        where: the file, for messages.
    """

    option: str
    value: str | None = None
    tree: Any = None
    where: str = ""

    @property
    def name(self) -> str:
        """The key."""
        return self.option[2:].rstrip("+")


def parse(arguments: Sequence[str]) -> Config:
    """Return the config that command-line arguments describe.

    A user's own task is imported to ask for its keys. Renamed keys are reported on standard error.

    Raises:
        UserError: a file cannot be read or a key is unknown or wrong; the message is one line.
    """
    config, said = _read(arguments, imports=True)
    if said and LAUNCHER_VARIABLE not in os.environ and detect().is_main:
        print(*(f"largebatch: {line}" for line in said), sep="\n", file=sys.stderr)
    return config


def read_config(path: Path, overrides: Sequence[str] = (), imports: bool = False) -> Config:
    """Return the config that a YAML file describes (a run's ``config.yaml``).

    Args:
        overrides: command-line options that override the file.
        imports: whether code that the file names may be imported to read its task's keys. By
            default a run directory of somebody else is only data, and no code runs by reading it.
    """
    return _read([f"--config={path}", *overrides], imports)[0]


def checked(config: Config) -> Config:
    """Check a config made by a program as if it were read from YAML: every value has its type.

    Raises:
        UserError: a value is of another type; the message is one line.
    """
    plain = _plain(config)
    return _parsed([f"--config={dump_yaml(plain)}"], task_kind(plain["task"], imports=True))


def _read(arguments: Sequence[str], imports: bool) -> tuple[Config, list[str]]:
    """Return the config, and what is to be said of its aliases."""
    written = list(_written(arguments))
    task = task_kind(_task_section(written), imports)
    arguments = list(_checked(written, known_keys(task)))
    said = [line for each in written for line in remarks(each.name, each.value, each.tree)]
    return _parsed(arguments, task), said


def _parsed(arguments: list[str], task: TaskKind) -> Config:
    """Let jsonargparse read what has been looked at."""
    from jsonargparse import ArgumentError

    asks_help = any(each == "--help" or each.endswith(".help") for each in arguments)
    try:
        return _instantiate(_parser(task, asks_help).parse_args(arguments), task)
    except UserError:
        raise
    except (ArgumentError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(_one_line(str(error), known_keys(task))) from None
    except RecursionError:
        raise UserError("config: nested too deeply") from None


def options_of(factory: Callable[..., Any], given: Mapping[str, str], name: str) -> dict[str, Any]:
    """Parse a factory's own options by its type annotations, as config keys are parsed.

    Args:
        given: texts from the command line, by argument name.
        name: name of the factory, for messages.

    Raises:
        UserError: a value is of another type; the message is one line.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    _types()
    hints = get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    parser = ArgumentParser(exit_on_error=False, parser_mode=MODE)
    for key in given:
        parser.add_argument(f"--{key}", type=hints.get(key, Any))
    values: dict[str, Any] = {}
    for key, value in given.items():
        try:
            parse_yaml(value, f"--{key}")
            values[key] = getattr(parser.parse_args([f"--{key}={value}"]), key)
        except UserError:
            raise
        except (ArgumentError, TypeError, ValueError, KeyError, AttributeError):
            raise UserError(
                f"{name}: --{key}={short(value)}: expected {expected(hints.get(key))}"
            ) from None
    return values


def dump(config: Config) -> str:
    """Return ``config`` as YAML that :func:`read_config` reads back, its paths absolute."""
    return dump_yaml(_plain(config))


def flat(config: Config) -> dict[str, Any]:
    """Return every key in dotted form with its value in YAML's types."""

    def walk(value: Any, name: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict) and name.count(".") < 1:
            for key, item in value.items():
                yield from walk(item, f"{name}.{key}" if name else key)
        else:
            yield name, value

    return dict(walk(_plain(config), ""))


@lru_cache(maxsize=1)
def _types() -> None:
    """Tell jsonargparse how our values are read and written."""
    import yaml
    from jsonargparse import set_dumper, set_loader
    from jsonargparse.typing import register_type

    register_type(Duration, str, Duration.parse)
    register_type(UserPath, str, UserPath)
    set_loader(MODE, _value, exceptions=(yaml.YAMLError,))
    set_dumper(MODE, dump_yaml)


@lru_cache(maxsize=8)
def _parser(task: TaskKind, is_described: bool = False) -> Any:
    """Return the parser of all keys; with what stands below each of them, if anybody reads it."""
    from argparse import SUPPRESS

    from jsonargparse import ArgumentParser, set_parsing_settings

    _types()
    set_parsing_settings(docstring_parse_attribute_docstrings=is_described)
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
    parser.add_class_arguments(config_with(task))
    return parser


def _value(text: str) -> Any:
    """Read a value of the command line, or a checked file, for jsonargparse."""
    import yaml

    try:
        return parse_yaml(text, "value")
    except UserError as error:
        raise yaml.YAMLError(str(error)) from None


def _instantiate(namespace: Any, task: TaskKind) -> Config:
    parts = _parser(task).instantiate(namespace)
    config = Config(**{field.name: parts[field.name] for field in dataclasses.fields(Config)})
    for key, hint in known_keys(task).items():
        section, _, name = key.partition(".")
        value = getattr(config, section)
        if (getattr(value, name) if name else value) is None and not {NoneType, Any} & set(
            options(hint)
        ):
            raise UserError(f"{key}=null: expected {expected(hint)}")
    return config


def _written(arguments: Sequence[str]) -> Iterator[Written]:
    """Divide arguments into options and values, and read files and recipes."""
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("--"):
            raise UserError(f"{argument!r}: options are written --section.key=value")
        option, equals, text = argument.partition("=")
        value: str | None = text
        if option[2:] in FLAGS:
            yield Written(option if option == "--help" else argument)
            continue
        if not equals:
            value = next(rest, None)
            value = None if value is None or value.startswith("--") else value or None
        if option[2:] in FILES and value is not None:
            path = _path(option[2:], value) if option == "--config" else recipe_file(value)
            yield Written(option, value, read_yaml(path, f"config={str(path)!r}"), str(path))
        else:
            yield Written(option, value)


def _task_section(written: Sequence[Written]) -> dict[str, Any]:
    """Return the ``task`` section as far as files and ``--task.name`` say it."""
    section: dict[str, Any] = {}
    for each in written:
        if each.name == "task.name" and each.value is not None:
            section["name"] = each.value
        elif isinstance(each.tree, dict) and isinstance(each.tree.get("task"), dict):
            section |= each.tree["task"]
    return section


def _checked(written: Sequence[Written], known: Mapping[str, Any]) -> Iterator[str]:
    """Yield the arguments for the parser, every key a known one under its name of today."""
    seen: dict[str, str] = {}
    for each in written:
        name, value = each.name, each.value
        if name.partition("=")[0] in FLAGS:
            yield each.option
            continue
        parent = name.rpartition(".")[0]
        nested = "." in parent and parent in known  # --optim.options.key=...
        if not (name in known or name in FILES or former(name) or nested):
            raise UserError(unknown(name, known))
        if value is None:
            raise UserError(f"--{name}: a value is missing, write --{name}=VALUE")
        if name in FILES:
            tree = renamed_tree(each.tree)
            check_keys(tree, each.where, known)
            if tree:
                yield f"--config={dump_yaml(tree)}"
            continue
        option, today = each.option, name
        if former(name):
            today, content = renamed(name, parse_yaml(value, f"--{name}"))
            option, value = f"--{today}", dump_yaml(content, in_one_line=True)
        own = parent if nested else name
        first = seen.setdefault(parent if nested else today, own)
        if first != own:
            raise UserError(two_names(f"--{first}", f"--{own}"))
        kinds = options(known.get(today))
        if UserPath in kinds and value != "null":
            value = _path(name, value)
        elif str not in kinds and value[:1] in ("[", "{"):
            parse_yaml(value, f"--{name}")
        yield f"{option}={value}"


def _path(name: str, text: str) -> UserPath:
    try:
        return UserPath(text)
    except UserError as error:
        raise UserError(f"--{name}: {error}") from None


def _one_line(message: str, known: Mapping[str, Any]) -> str:
    """Collapse a parser's message into KEY=VALUE: what is allowed."""
    keys = re.findall(r'Parser key "([^"]+)"', message)
    if not keys:
        return f"config: {short(message)}"
    key, inner = keys[0], keys[1:]
    hint = known.get(key)
    unknown = re.search(r"[Oo]ption '([^']+)' is not accepted", message)
    if hint is not None and unknown:
        names = [field.name for kind in dataclasses_in(hint) for field in dataclasses.fields(kind)]
        near = nearest(unknown[1], names)
        return f"unknown key '{key}.{unknown[1]}'{near}: {key} has {', '.join(names)}"
    for name in inner:
        for kind in dataclasses_in(hint):
            hint = get_type_hints(kind).get(name, hint)
    found = re.search(r"(?:Got|Given) value: (.*?)(?:\s*\n|$)", message)
    value = found[1] if found else (re.search(r"duration (.*?): ", message) or ("", "?"))[1]
    return f"{'.'.join([key, *inner])}={short(value)}: expected {expected(hint)}"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Duration):
        return str(value)
    if isinstance(value, (UserPath, os.PathLike)):
        return os.path.abspath(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
