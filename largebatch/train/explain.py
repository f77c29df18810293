"""The command `largebatch explain NAME`: print the method card of a registered entry."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, get_type_hints

from largebatch._errors import UserError, nearest
from largebatch.probes import evaluations, probes
from largebatch.train.registries import REGISTRIES

KNOWN = (*REGISTRIES, probes, evaluations)


def explain(name: str) -> str:
    """Return the method cards of ``name``, one for each config key that knows the name.

    Raises:
        UserError: no registry has this name.
    """
    cards = list(_cards(name))
    if not cards:
        every = [entry.name for registry in KNOWN for entry in registry]
        raise UserError(
            f"{name!r}: no entry of that name{nearest(name, every)}; there are {', '.join(every)}"
        )
    return "\n\n".join(cards)


def _cards(name: str) -> Iterator[str]:
    for registry in KNOWN:
        if name not in registry:
            continue
        entry = registry.entry(name)
        lines = [f"{registry.key}: {entry.name}", entry.summary]
        if entry.source:
            lines.append(f"source: {entry.source}")
        lines += entry.facts.words()
        documentation = inspect.getdoc(_subject(entry.factory))
        if documentation:
            lines += ["", documentation]
        yield "\n".join(lines)


def _subject(factory: Any) -> Any:
    """Return what ``factory`` makes, where that is a class of ours, else the factory itself."""
    made = get_type_hints(factory).get("return") if inspect.isfunction(factory) else None
    ours = inspect.isclass(made) and made.__module__.startswith("largebatch.")
    return made if ours else factory
