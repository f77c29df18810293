"""Keyword arguments of the optimizers that ours take the place of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from largebatch._errors import UserError, nearest


@dataclass(frozen=True)
class Foreign:
    """One argument of another library's optimizer, which also stands in the groups of its state.

    Attributes:
        means: what its values come to in our settings; nothing where ours does that anyway.
        otherwise: what a user of any other value should write.
        renamed: our name of the setting, where it has another.
    """

    means: Mapping[Any, Mapping[str, Any]] = field(default_factory=dict)
    otherwise: str = ""
    renamed: str | None = None


def translate(name: str, table: Mapping[str, Foreign], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``given`` arguments of other optimizers come to in our settings.

    Args:
        name: of our optimizer, for the errors.
        table: the arguments that it knows.
        given: names and values.

    Raises:
        TypeError: an argument that is not in ``table``.
        UserError: a value that ours has no form of; it says what to write instead.
    """
    settings: dict[str, Any] = {}
    for key, value in given.items():
        if key not in table:
            raise TypeError(f"{name}: unexpected keyword argument {key!r}{nearest(key, table)}")
        entry = table[key]
        if entry.renamed is not None:
            meant: Mapping[str, Any] = {entry.renamed: value}
        else:
            known = [mapped for each, mapped in entry.means.items() if _same(value, each)]
            if not known:
                raise UserError(f"{name}: {key}={value}: {entry.otherwise}")
            meant = known[0]
        for setting, wanted in meant.items():
            if settings.setdefault(setting, wanted) != wanted:
                raise UserError(f"{name}: {key}={value}: another argument sets {setting} otherwise")
    return settings


def _same(value: Any, other: Any) -> bool:
    return value is None if other is None else value is not None and bool(value == other)


_NO_DERIVATIVE = "the step is one kernel and has no derivative; torch.optim.SGD can take it"

TORCH: dict[str, Foreign] = {
    # All tensors are stepped together; results do not depend on it.
    "foreach": Foreign({None: {}, True: {}, False: {}}),
    "differentiable": Foreign({False: {}}, _NO_DERIVATIVE),
}
"""Arguments that torch's optimizers have in common."""
