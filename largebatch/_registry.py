"""Registries: map names in a config to factories, with a summary and a source."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from largebatch._errors import UserError, nearest, raised


@dataclass(frozen=True)
class Facts:
    """Facts about a registry entry that the rest of the package needs, in place of tests on names.

    A registry whose entries differ in facts has its own subclass.
    """

    def words(self) -> Iterator[str]:
        """Yield the facts as `largebatch explain` prints them, one short line each."""
        return iter(())


Factory = TypeVar("Factory", bound=Callable[..., Any])
FactsOf = TypeVar("FactsOf", bound=Facts)


@dataclass(frozen=True)
class Entry(Generic[Factory, FactsOf]):
    """One registry entry: name, factory, one-line summary, source (paper) and facts."""

    name: str
    factory: Factory
    summary: str
    source: str
    facts: FactsOf


class Registry(Generic[Factory, FactsOf]):
    """Names of one kind of thing (``models``, ``optimizers``, ...), filled by a decorator.

    Args:
        key: the config key that selects from this registry, for error messages (``model.name``).
        facts: ``facts(factory)`` returns the facts of an entry registered or imported without
            facts.
        importable: whether ``package.module:callable`` names something outside the registry.
    """

    def __init__(
        self, key: str, facts: Callable[[Factory], FactsOf], importable: bool = False
    ) -> None:
        self.key = key
        self.importable = importable
        self._facts = facts
        self._entries: dict[str, Entry[Factory, FactsOf]] = {}

    def register(
        self, name: str, summary: str, source: str = "", facts: FactsOf | None = None
    ) -> Callable[[Factory], Factory]:
        """Return a decorator that registers a function or class under ``name``."""
        assert name not in self._entries, f"{self.key}: {name!r} is registered twice"

        def enter(factory: Factory) -> Factory:
            known = self._facts(factory) if facts is None else facts
            self._entries[name] = Entry(name, factory, summary, source, known)
            return factory

        return enter

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[Entry[Factory, FactsOf]]:
        return iter(self._entries.values())

    def names(self) -> list[str]:
        """Return the registered names in the order of registration."""
        return list(self._entries)

    def where(self, holds: Callable[[FactsOf], bool]) -> str:
        """Return the names of entries whose facts fulfil ``holds``, in words: "ddp or fsdp"."""
        return " or ".join(entry.name for entry in self if holds(entry.facts))

    def imports(self, name: str) -> bool:
        """Return whether ``name`` is a user's code, which :meth:`entry` would import."""
        return self.importable and name not in self._entries and ":" in name

    def entry(self, name: str) -> Entry[Factory, FactsOf]:
        """Return the entry of ``name``, importing it if it is ``package.module:callable``.

        Raises:
            UserError: the name is unknown, or its code cannot be imported or called.
        """
        if name in self._entries:
            return self._entries[name]
        if self.imports(name):
            factory = self._imported(name)
            return Entry(name, factory, "imported", name, self._facts(factory))
        allowed = ", ".join(self._entries) + (
            " or package.module:callable" if self.importable else ""
        )
        raise UserError(f"{self.key}={name!r}: choose from {allowed}{nearest(name, self._entries)}")

    def _imported(self, name: str) -> Any:
        module_name, _, attribute = name.partition(":")
        where = f"{self.key}={name!r}"
        if module_name.partition(".")[0] in sys.stdlib_module_names:
            raise UserError(
                f"{where}: {module_name} is a module of Python's own, where nothing of that kind "
                "is; a file of yours of that name needs another one"
            )
        try:
            with this_folder_last():
                module = importlib.import_module(module_name)
        except (Exception, SystemExit) as error:
            absent = error.name if isinstance(error, ModuleNotFoundError) else None
            if absent and f"{module_name}.".startswith(f"{absent}."):
                raise UserError(
                    f"{where}: no module {absent!r} is installed or stands in this folder; "
                    "write package.module:callable"
                ) from None
            raise UserError(f"{where}: to import it raised {raised(error)}") from error
        if not callable(getattr(module, attribute, None)):
            place = getattr(module, "__file__", None) or module_name
            raise UserError(f"{where}: {place} has no callable {attribute!r}")
        return getattr(module, attribute)


def named_by(factory: Callable[..., Any], offers: Mapping[str, Any]) -> dict[str, Any]:
    """Return those ``offers`` that ``factory`` takes by the names of its arguments.

    Raises:
        UserError: an argument without a default is not among the offers.
    """
    parameters = inspect.signature(factory).parameters.values()
    given = {p.name: offers[p.name] for p in parameters if p.name in offers}
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    for p in parameters:
        if p.kind in plain and p.default is p.empty and p.name not in offers:
            raise UserError(f"there is no {p.name!r}: there are {', '.join(offers)}")
    return given


@contextmanager
def this_folder_last() -> Iterator[None]:
    """Inside a ``with`` block, search the current folder last for modules.

    Used only while a user's code is imported and makes its first late imports. After that, a
    library that checks for another library must not find a file of the user's.
    """
    here = _Folder(os.getcwd())
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path[:] = [folder for folder in sys.path if folder is not here]


class _Folder(str):
    """One entry of sys.path, told apart from equal ones."""

    __slots__ = ()
