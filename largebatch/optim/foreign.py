"""Accept the keyword arguments of the optimizers that ours replace (torch, apex, timm, ...)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from largebatch._errors import UserError, nearest


@dataclass(frozen=True)
class Foreign:
    """One argument of another library's optimizer; saved parameter groups hold it too.

    Attributes:
        means: our settings for each of its values; empty where our optimizer behaves so anyway.
        otherwise: advice to a user who gives any other value.
        renamed: our name of the setting, if it differs.
    """

    means: Mapping[Any, Mapping[str, Any]] = field(default_factory=dict)
    otherwise: str = ""
    renamed: str | None = None


def translate(name: str, table: Mapping[str, Foreign], given: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the arguments ``given`` in another library's terms into our settings.

    Args:
        name: our optimizer's name, for error messages.
        table: the foreign arguments that our optimizer accepts.
        given: argument names and values.

    Raises:
        TypeError: an argument that is not in ``table``.
        UserError: a value that our optimizer has no form of; the message says what to write
            instead.
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
