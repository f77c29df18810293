"""A study's own options on the command line, read from the signature of its factory.

A factory with an argument ``base`` takes the options of ``largebatch train`` too: the settings that
all of its runs start from.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from largebatch._documents import dump_yaml, parse_yaml, read_yaml
from largebatch._errors import UserError, nearest
from largebatch._paths import UserPath
from largebatch.record import json_text
from largebatch.study.study import Study
from largebatch.train.config import Config
from largebatch.train.keys import expected, options
from largebatch.train.parse import FILES, options_of

BASE = "base"
FILE = "options"  # of a study, in YAML
WHERE = "run"  # the argument that a word before all options is
OF_TRAIN = {*FILES, *(field.name for field in fields(Config))}  # its options without a dot


def spoken(parameter: str) -> str:
    """Return an argument's name as an option, without the underscore of names such as ``from_``."""
    return parameter.rstrip("_")


def read_options(
    factory: Callable[..., Study], name: str, arguments: Sequence[str]
) -> dict[str, Any]:
    """Parse the command line into a factory's arguments.

    An option is written ``--key=value`` or ``--key value``, with several values if it takes a list.

    Raises:
        UserError: an option is unknown, missing or of another type, in one line.
    """
    known = {spoken(key): key for key in inspect.signature(factory).parameters}
    hints = hints_of(factory)
    given: dict[str, str] = {}
    base: list[str] = []
    for option, words in _from_files(_divided(arguments)):
        key = option.replace("-", "_")
        if option == "":
            if WHERE not in known:
                raise UserError(f"{words[0]!r}: options of a study are written --key=value")
            if len(words) > 1:
                raise UserError(f"study {name}: one run, not {' '.join(words)}")
            given[WHERE] = words[0]
        elif key in known:
            given[known[key]] = _text(f"study {name}: --{option}", words, hints.get(known[key]))
        elif BASE in known and ("." in option or option in OF_TRAIN):
            if len(words) != 1:
                raise UserError(f"--{option}: one value, write --{option}=VALUE")
            base.append(f"--{option}={words[0]}")
        else:
            raise UserError(
                f"--{option}: study {name} has {', '.join(known) or 'no options'}"
                f"{' and the options of largebatch train' if BASE in known else ''}"
                f"{nearest(key, known)}"
            )
    values = options_of(factory, given, f"study {name}")
    if base:
        values[BASE] = [*values.get(BASE, ()), *base]
    for key, parameter in inspect.signature(factory).parameters.items():
        if parameter.default is parameter.empty and key not in values:
            raise UserError(f"study {name}: --{spoken(key)}=VALUE is missing")
    return values


def described(factory: Callable[..., Study]) -> Iterator[str]:
    """Yield each option with its type and default, in words."""
    hints = hints_of(factory)
    for key, parameter in inspect.signature(factory).parameters.items():
        kinds = [_in_words(kind) for kind in options(hints.get(key, str)) if kind is not NoneType]
        default, words = parameter.default, ""
        if default is parameter.empty:
            words = "; has to be set"
        elif default not in (None, ()):
            several = isinstance(default, Sequence) and not isinstance(default, str)
            words = f" [{', '.join(map(str, default)) if several else default}]"
        yield f"--{spoken(key)}=  {' or '.join(kinds)}{words}"


def hints_of(factory: Callable[..., Study]) -> dict[str, Any]:
    """Return the types of a factory's arguments."""
    return get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)


def _in_words(kind: Any) -> str:
    item = get_args(kind)[0] if _is_list(kind) else kind
    words = expected(item).partition(" (")[0]
    return words if item is kind else f"one or more, each {words}"


def _divided(arguments: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Return every option with its values; words before all of them under an empty name."""
    found: list[tuple[str, list[str]]] = []
    for argument in arguments:
        if argument.startswith("--"):
            option, equals, value = argument[2:].partition("=")
            found.append((option, [value] if equals else []))
        elif found:
            found[-1][1].append(argument)
        else:
            found.append(("", [argument]))
    return found


def as_option(value: Any) -> str:
    """Return a value in the form of a command-line option."""
    if isinstance(value, str):
        return value
    return dump_yaml(value, in_one_line=True).removesuffix("...\n").strip()


def _from_files(options: list[tuple[str, list[str]]]) -> Iterator[tuple[str, list[str]]]:
    """Put the options that a file of ``--options`` holds in its place."""
    for option, words in options:
        if option != FILE:
            yield option, words
            continue
        for word in words:
            tree = read_yaml(UserPath(word), f"--{FILE} {word}")
            if not isinstance(tree, dict):
                raise UserError(f"--{FILE} {word}: a mapping of a study's options to values")
            for key, value in tree.items():
                yield str(key), [as_option(value)]


def _text(where: str, words: list[str], hint: Any) -> str:
    """Return values as one of the config's YAML: several, or one of a list, are a list."""
    kinds = options(hint)
    item = next((get_args(kind) for kind in kinds if _is_list(kind)), None)
    texts = item is not None and item[:1] in ((str,), (UserPath,))  # may look like anything else
    if texts and len(words) == 1 and words[0].startswith("["):
        words = [as_option(each) for each in parse_yaml(words[0], where)]
    elif item is None or (len(words) == 1 and words[0].startswith("[")):
        if not words and bool in kinds:
            return "true"
        if len(words) != 1:
            raise UserError(f"{where}: one value, not {len(words)}")
        return words[0]
    if not words:
        raise UserError(f"{where}: at least one value")
    return f"[{', '.join(json_text(word) if texts else word for word in words)}]"


def _is_list(kind: Any) -> bool:
    origin = get_origin(kind)
    return inspect.isclass(origin) and issubclass(origin, Sequence)
