"""Registries: everything a config names is found here, with its summary and its source."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from largebatch._errors import UserError, nearest

Factory = TypeVar("Factory", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry(Generic[Factory]):
    """One named thing: its factory, one line on what it is, and the paper it comes from."""

    name: str
    factory: Factory
    summary: str
    source: str = ""


class Registry(Generic[Factory]):
    """Names of one kind of thing (``models``, ``optimizers``, ...), filled by a decorator.

    Args:
        key: the config key that selects from this registry, for error messages (``model.name``).
        importable: whether ``package.module:callable`` names something outside the registry.
    """

    def __init__(self, key: str, importable: bool = False) -> None:
        self.key = key
        self.importable = importable
        self._entries: dict[str, Entry[Factory]] = {}

    def register(self, name: str, summary: str, source: str = "") -> Callable[[Factory], Factory]:
        """Return a decorator that enters its function or class under ``name``."""
        assert name not in self._entries, f"{self.key}: {name!r} is registered twice"

        def enter(factory: Factory) -> Factory:
            self._entries[name] = Entry(name, factory, summary, source)
            return factory

        return enter

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[Entry[Factory]]:
        return iter(self._entries.values())

    def names(self) -> list[str]:
        """Return the registered names in the order of registration."""
        return list(self._entries)

    def entry(self, name: str) -> Entry[Factory]:
        """Return the entry of ``name``, importing it if it is ``package.module:callable``.

        Raises:
            UserError: the name is unknown, or what it names cannot be imported or called.
        """
        if name in self._entries:
            return self._entries[name]
        if self.importable and ":" in name:
            return Entry(name, self._imported(name), "imported", name)
        allowed = ", ".join(self._entries) + (
            " or package.module:callable" if self.importable else ""
        )
        raise UserError(f"{self.key}={name!r}: choose from {allowed}{nearest(name, self._entries)}")

    def _imported(self, name: str) -> Any:
        module_name, _, attribute = name.partition(":")
        try:
            found = getattr(importlib.import_module(module_name), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(
                f"{self.key}={name!r}: {error}; write package.module:callable"
            ) from None
        if not callable(found):
            raise UserError(f"{self.key}={name!r}: {attribute} is not callable")
        return found
