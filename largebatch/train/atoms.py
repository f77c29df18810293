"""The smallest units of a step: ghost batches of the norms, or samples that a task ties together.

An atom is never divided between ranks or forward passes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from largebatch._errors import UserError
from largebatch.nn import minimum_samples, spans_ranks, wrong_span
from largebatch.processes import World
from largebatch.tasks import Task
from largebatch.train.config import Config

MIXING_GROUP = 32  # samples that mixup draws partners from where no ghost size is set


@dataclass(frozen=True)
class Atoms:
    """The undivided units of a step: ghosts of ``size`` samples, none below ``minimum`` samples.

    Attributes:
        span: number of ranks that hold a ghost together; 0 if each ghost is on one rank. With a
            ``span``, ``size`` 0 means all samples that these ranks hold in one forward pass.
        of_norms: whether the model's norms take their statistics over these ghosts.
    """

    size: int
    minimum: int
    span: int = 0
    of_norms: bool = False


def make_atoms(config: Config, model: nn.Module, task: Task[Any]) -> Atoms:
    """Return the atoms of a run: ghost batches, or single samples if no norm reads a batch.

    Raises:
        UserError: the norms and the task need different ghosts.
    """
    asked = task.atom()
    minimum = max(minimum_samples(model), asked.minimum)
    size = config.norm.ghost_size or 0
    if size and asked.size and size != asked.size:
        raise UserError(
            f"norm.ghost_size={size}: task.name={config.task.name} holds {asked.size} samples "
            f"together; take norm.ghost_size={asked.size}"
        )
    of_norms = size > 0 or spans_ranks(config.norm)
    size = size or asked.size
    if size == 0 and not spans_ranks(config.norm):
        mixing = config.data.mixup or config.data.cutmix
        # Under statistics per forward a rank's share of one sample has none: two stay together.
        size = MIXING_GROUP if mixing else minimum
    return Atoms(size, minimum, of_norms=of_norms)


def share_of(size: int, atoms: Atoms, world: World) -> int:
    """Return the largest number of samples of a rank in a step of ``size``, in whole atoms."""
    atom = atoms.size or 1
    return math.ceil(math.ceil(size / atom) / world.world_size) * atom


def check_span(config: Config, world: World) -> None:
    """Refuse groups of ranks that do not add up to all ranks.

    Raises:
        UserError: ``norm.sync_ranks`` does not divide the number of ranks.
    """
    mistake = wrong_span(config.norm, world.world_size)
    if mistake:
        raise UserError(mistake)


def with_span(atoms: Atoms, config: Config, world: World) -> Atoms:
    """Return ``atoms`` with ``span``, the number of ranks that hold a ghost together."""
    if not spans_ranks(config.norm):
        return atoms
    return replace(atoms, span=config.norm.sync_ranks or world.world_size)
