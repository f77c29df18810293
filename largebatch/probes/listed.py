"""Read the config lists ``probes`` and ``evaluate.also``: ``[{name, every, options}]``."""

from __future__ import annotations

import inspect
from collections.abc import Container, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from largebatch._errors import UserError, nearest, raised
from largebatch._registry import Registry, named_by, this_folder_last
from largebatch.schedule import Duration

KEYWORDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class Listed:
    """One item of such a config list.

    Attributes:
        where: place of the item, for messages, such as ``probes[0]``.
        every: distance between the steps at which the item acts; None if not given.
        options: the item's other keys.
    """

    where: str
    name: str
    every: Duration | None
    options: dict[str, Any]


def check_list(
    registry: Registry[Any, Any], items: Sequence[Any], offers: Container[str]
) -> list[Listed]:
    """Check a list as far as possible without a run; user code that it names is imported.

    Args:
        registry: the registry of names; its key is the list's key in the config.
        offers: names of arguments that the run gives to factories; options must not use them.

    Raises:
        UserError: one line with the item and what is wrong.
    """
    found: list[Listed] = []
    for number, item in enumerate(items):
        listed = _read(f"{registry.key}[{number}]", item)
        try:
            factory = registry.entry(listed.name).factory
        except UserError as error:
            text = str(error).removeprefix(registry.key)
            raise UserError(f"{listed.where}.name{text}") from None
        if any(listed.name == before.name for before in found):
            raise UserError(f"{listed.where}.name={listed.name!r}: is named twice")
        _check_options(listed, factory, offers)
        found.append(listed)
    return found


def make(registry: Registry[Any, Any], listed: Listed, offers: Mapping[str, Any]) -> Any:
    """Call the item's factory with its options and with the offers that its signature names.

    Raises:
        UserError: the factory refuses its arguments or raises an error.
    """
    factory = registry.entry(listed.name).factory
    theirs = registry.imports(listed.name)
    given = named_by(factory, {**listed.options, **offers}) | listed.options
    try:
        with this_folder_last() if theirs else nullcontext():
            return factory(**given)
    except UserError as error:
        raise UserError(f"{listed.where}: {error}") from error
    except Exception as error:
        if not theirs:
            raise
        raise UserError(
            f"{listed.where}.name={listed.name!r}: to make it raised {raised(error)}"
        ) from error


def _read(where: str, item: Any) -> Listed:
    if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
        raise UserError(f"{where}={item!r}: a mapping such as {{name: NAME, every: 1ep}}")
    options = {str(key): value for key, value in item.items() if key not in ("name", "every")}
    every = item.get("every")
    if every is not None:
        try:
            every = Duration.parse(every)
        except UserError as error:
            raise UserError(f"{where}.every={item['every']!r}: {error}") from None
        if every.value == 0:
            raise UserError(f"{where}.every={every}: more than 0")
    return Listed(where, item["name"], every, options)


def _check_options(listed: Listed, factory: Any, offers: Container[str]) -> None:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (ValueError, TypeError):
        raise UserError(
            f"{listed.where}.name={listed.name!r}: does not say which arguments it takes"
        ) from None
    known = {p.name: p.default is p.empty for p in parameters if p.kind in KEYWORDS}
    own = [name for name in known if name not in offers]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for name in listed.options:
        if name in offers:
            raise UserError(f"{listed.where}.{name}: the run gives it; leave it out")
        if name not in known and not takes_any:
            there = f"there are {', '.join(own)}" if own else "it has none"
            raise UserError(
                f"{listed.where}.{name}: {listed.name} has no such option;"
                f" {there}{nearest(name, own)}"
            )
    for name in own:
        if known[name] and name not in listed.options:
            raise UserError(f"{listed.where}.{name} is missing: {listed.name} needs it")
