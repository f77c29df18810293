"""The registry of optimizers: what ``optim.name`` chooses from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch

from largebatch._errors import UserError
from largebatch._registry import Facts, Registry
from largebatch.optim.config import OptimConfig

Factory = Callable[[OptimConfig, list[dict[str, Any]]], torch.optim.Optimizer]


@dataclass(frozen=True)
class OptimizerFacts(Facts):
    """What the rest of the package has to know of an optimizer.

    Attributes:
        takes: the keys of ``optim`` that it has a use for, beside those that all have.
        layerwise: its rate follows each tensor's norms.
        whole_matrices: it needs every matrix whole, where an engine may divide it.
        by_engine: the engine makes it, from a config of the engine's own.
        scale_free: its update does not grow with the gradient, so that with ``optim.scaling=sde``
            the rate follows the square root of the batch.
    """

    takes: frozenset[str] = frozenset()
    layerwise: bool = False
    whole_matrices: bool = False
    by_engine: bool = False
    scale_free: bool = False

    def words(self) -> Iterator[str]:
        """Yield the facts, a short line each."""
        own = [f"optim.{name}" for name in keys_of_some() if name in self.takes]
        yield f"keys of its own: {', '.join(own) or 'none'}"
        if self.layerwise:
            yield "its rate follows each tensor's norms"
        if self.whole_matrices:
            yield "needs whole matrices: no engine that divides parameters"
        if self.by_engine:
            yield "made by the engine, which needs one that makes optimizers"
        if self.scale_free:
            yield "its update does not grow with the gradient: the rate goes as sqrt with sde"


def _said(factory: Any) -> OptimizerFacts:
    """Return the attribute ``facts`` of what is imported, if it has one."""
    facts = getattr(factory, "facts", None)
    return facts if isinstance(facts, OptimizerFacts) else OptimizerFacts()


optimizers: Registry[Factory, OptimizerFacts] = Registry("optim.name", _said, importable=True)
"""Factories ``(config, groups) -> Optimizer``; ``groups`` are those of ``param_groups``."""


def keys_of_some() -> list[str]:
    """Return the keys of ``optim`` that some optimizers take and others have no use for."""
    taken = frozenset[str]().union(*(entry.facts.takes for entry in optimizers))
    return [each.name for each in fields(OptimConfig) if each.name in taken]


def refuse_unused(config: OptimConfig, takes: frozenset[str], remedy: str = "") -> None:
    """Refuse keys of single optimizers that are set although the chosen one ignores them.

    Args:
        takes: what the chosen one's facts say.
        remedy: what else to do, for the message.

    Raises:
        UserError: naming the first such key.
    """
    defaults = OptimConfig()
    for name in keys_of_some():
        value = getattr(config, name)
        if name not in takes and value != getattr(defaults, name):
            raise UserError(
                f"optim.{name}={value}: optim.name={config.name} has no such setting{remedy}"
            )
