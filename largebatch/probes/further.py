"""Further evaluations of a run's weights during training, as ``evaluate.also`` names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import nn

from largebatch._errors import UserError
from largebatch._registry import Facts, Registry
from largebatch.probes.listed import Listed, check_list

OWN = ("ema", "ensemble", "weight")  # names of those that other keys switch on

Run: TypeAlias = Callable[[nn.Module], Mapping[str, float]]
"""Returns the figures of a model; every rank calls it, and those of rank 0 count."""

evaluations: Registry[Callable[..., Run], Facts] = Registry(
    "evaluate.also", lambda _: Facts(), importable=True
)

EVALUATION_OFFERS: dict[str, str] = {
    "task": "what a step means",
    "source": "the training data",
    "validation": "the validation data",
    "evaluator": "walks the validation data",
    "plain": "walks this rank's share of either as it is, without augmentation",
    "world": "the ranks",
    "device": "of this rank",
    "seed": "of the run",
}
"""What the run gives a factory that names it in its signature; all else there is an option.

A factory returns what is called with the model at each evaluation, on every rank alike, and returns
its figures, of which rank 0's count. The model is in evaluation mode, without gradients unless they
are switched on, and is to be left as it is.
"""


def check_also(items: Sequence[Any]) -> list[Listed]:
    """Check ``evaluate.also`` as far as possible before there is a run.

    Raises:
        UserError: one line naming the item and what is wrong with it.
    """
    found = check_list(evaluations, items, EVALUATION_OFFERS)
    taken = set(OWN)
    for listed in found:
        if short_name(listed.name) in taken:
            raise UserError(f"{listed.where}.name={listed.name!r}: the run has one of that name")
        taken.add(short_name(listed.name))
    return found


def short_name(name: str) -> str:
    """Return the prefix of an evaluation's figures: for a user's code, the callable's name."""
    return name.rpartition(":")[2]
