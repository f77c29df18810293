"""The registry of optimizers, from which ``optim.name`` chooses."""

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
    """Facts about an optimizer that the rest of the package needs.

    Attributes:
        takes: the keys of ``optim`` that it uses, beside those that all optimizers use.
        layerwise: each tensor's rate follows its norms (a trust ratio).
        whole_matrices: it needs every matrix whole, so an engine must not shard matrices.
        by_engine: the engine (DeepSpeed) makes it, from the engine's own config.
        scale_free: its update does not grow with the gradient, so that with ``optim.scaling=sde``
            the rate follows the square root of the batch.
    """

    takes: frozenset[str] = frozenset()
    layerwise: bool = False
    whole_matrices: bool = False
    by_engine: bool = False
    scale_free: bool = False

    def words(self) -> Iterator[str]:
        """Yield the facts, one short line each."""
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
    """Return the keys of ``optim`` that only some optimizers use."""
    taken = frozenset[str]().union(*(entry.facts.takes for entry in optimizers))
    return [each.name for each in fields(OptimConfig) if each.name in taken]


def refuse_unused(config: OptimConfig, takes: frozenset[str], remedy: str = "") -> None:
    """Refuse keys that are set although the chosen optimizer ignores them.

    Args:
        takes: ``OptimizerFacts.takes`` of the chosen optimizer.
        remedy: advice that ends the error message.

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
