"""The config that the runs of a study start from, and its change with the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from largebatch._errors import UserError
from largebatch.schedule import scale_lr
from largebatch.train import parse
from largebatch.train.config import Config

Rule = Literal["linear", "sqrt", "none"]
# Adaptive directions have a length that does not depend on the batch: their rate goes by the root.
BY_ROOT = ("adam", "adamw", "nadam", "radam", "adamax", "adagrad", "rmsprop", "lamb", "muon")


def base_config(base: Sequence[str], study: str) -> Config:
    """Return the config that options of ``largebatch train`` describe.

    Raises:
        UserError: an option is not valid, or the batch changes during the run.
    """
    if not base:
        raise UserError(
            f"study {study}: name the training by --recipe=NAME, --config=FILE or options of"
            " largebatch train"
        )
    config = parse.parse(base)
    if config.batch.plan:
        raise UserError(
            f"study {study}: batch.plan has batches of its own; the study sets them, leave it out"
        )
    return config


def rule_of(config: Config, given: Rule | None) -> Rule:
    """Return the rate's scaling rule: as given, from the config, or usual for the optimizer."""
    if given is not None:
        return given
    scaling = config.optim.scaling
    if scaling == "sde" or scaling == "surge":
        raise UserError(
            f"study: optim.scaling={scaling}: give the study's --scaling, linear, sqrt or none"
        )
    if scaling != "none":
        return scaling
    return "sqrt" if config.optim.name.rpartition(":")[2].lower() in BY_ROOT else "linear"


def rate_of(config: Config) -> float:
    """Return the peak learning rate at the config's own batch, before the schedule's curve."""
    reference = config.batch.reference or config.batch.size
    return scale_lr(config.optim.lr, config.batch.size, reference, config.optim.scaling)


def at_batch(config: Config, size: int, rule: Rule, factor: float = 1.0) -> Config:
    """Return the config at another batch, with the rate scaled by the rule and by ``factor``."""
    rate = scale_lr(rate_of(config), size, config.batch.size, rule) * factor
    return replace(
        config,
        batch=replace(config.batch, size=size, reference=None),
        optim=replace(config.optim, lr=rate, scaling="none"),
    )


def with_seed(config: Config, seed: int) -> Config:
    """Return the config with another seed."""
    return replace(config, run=replace(config.run, seed=seed))


def times(factor: float) -> str:
    """Return a factor in the form used in job names."""
    return f"x{factor:g}"
