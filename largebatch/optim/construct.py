"""Call an optimizer's class with the arguments from the config; refuse unknown options."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from largebatch._errors import UserError, nearest
from largebatch.optim.config import OptimConfig


def construct(
    kind: type[torch.optim.Optimizer],
    config: OptimConfig,
    groups: list[dict[str, Any]],
    arguments: dict[str, Any],
) -> Any:
    """Call ``kind`` with ``arguments`` and ``optim.options``, naming the option that is wrong."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    named = {each.name for each in parameters if each.kind is not each.VAR_KEYWORD}
    taken = (named | set(getattr(kind, "foreign", ()))) - {"self", "params"}
    own = {key for key in vars(config) if key in taken and key != "options"}
    for key, value in config.options.items():
        if key in own:
            raise UserError(f"optim.options.{key}={value!r}: set optim.{key} instead")
        if key not in taken:
            allowed = sorted(taken - own)
            raise UserError(
                f"optim.options.{key}={value!r}: optim.name={config.name} takes "
                f"{', '.join(allowed)}{nearest(key, allowed)}"
            )
    try:
        return kind(groups, **{**arguments, **config.options})
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"optim.options={config.options}: {error}") from error
