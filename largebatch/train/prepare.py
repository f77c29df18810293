"""Prepare a run before any rank works: open the data, make the model, resolve the schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from largebatch._errors import UserError
from largebatch.data import Delivery, Source, StreamOrder, build_source
from largebatch.models import build_model
from largebatch.nn import mix_blocks
from largebatch.optim import rate_rule
from largebatch.schedule import Schedule
from largebatch.tasks import Coupled, Task, Votes, build_task
from largebatch.train.atoms import Atoms, make_atoms
from largebatch.train.averages import require_memory
from largebatch.train.config import Config
from largebatch.train.finite import infinite_constants
from largebatch.train.precision import Precision


@dataclass
class Prepared:
    """The parts of a run that are known before any rank works; nothing is shared between ranks."""

    source: Source
    validation: Source
    task: Task[Any]
    model: nn.Module
    precision: Precision
    atoms: Atoms
    schedule: Schedule
    constants: frozenset[str]


def prepare(config: Config, device: torch.device) -> Prepared:
    """Open the data, make the model and resolve the schedule.

    Raises:
        UserError: data are missing or damaged, or parts do not fit together.
    """
    precision = Precision(config.precision, device)
    source = build_source(config.data, "train", config.model.num_classes)
    validation = build_source(config.data, "val", config.model.num_classes)
    task = build_task(config.task, source.offers())
    if config.snapshot.cycles and not isinstance(task, Votes):
        raise UserError(
            f"snapshot.cycles={config.snapshot.cycles}: the members vote, which"
            f" task.name={config.task.name} has no votes for"
        )
    if config.optim.sam_scope == "rank" and config.optim.sam_rho and isinstance(task, Coupled):
        raise UserError(
            f"optim.sam_scope=rank: task.name={config.task.name} ties the samples of all ranks"
            " together; take sam_scope=global"
        )
    model = make_model(config, source, task, precision, device)
    atoms = make_atoms(config, model, task)
    schedule = Schedule(
        config.schedule,
        config.batch,
        config.optim.lr,
        rate_rule(config.optim),
        len(source),
        atoms.minimum,
        config.snapshot.cycles or None,
    )
    require_memory(config, schedule)
    order = source.order(config.run.seed)
    if isinstance(order, StreamOrder):
        order.require_divides(_step_sizes(config, schedule), schedule.total_samples)
    for extent in {phase.extent for phase in schedule.plan.phases} - {None}:
        example = source.example(
            2, Delivery(config.run.seed, device, True, precision.dtype), extent
        )
        task.try_model(model, config.model.name, example, training=False)
    constants = infinite_constants(model)
    return Prepared(source, validation, task, model, precision, atoms, schedule, constants)


def make_model(
    config: Config, source: Source, task: Task[Any], precision: Precision, device: torch.device
) -> nn.Module:
    """Build the model from the run's seed: the same weights on every rank and in every session."""

    def trial(model: nn.Module, training: bool) -> None:
        first = next(model.parameters(), torch.zeros(()))
        delivery = Delivery(config.run.seed, first.device, training, first.dtype)
        task.try_model(model, config.model.name, source.example(2, delivery), training)

    offers = task.offers(source.offers())
    model = build_model(
        config.model,
        config.norm,
        offers,
        precision.dtype,
        config.run.seed,
        trial,
        task.complete,
    ).to(device)
    mix_blocks(model, config.data.mixup_layers)
    return model


def _step_sizes(config: Config, schedule: Schedule) -> dict[str, int]:
    """Return the samples of a step in every phase, by the key that says so."""
    if config.batch.control != "none":
        return {"batch.size": config.batch.size, "batch.max": schedule.largest}
    phases = schedule.plan.phases
    names = [
        f"batch.plan[{i}].size" if p.size else "batch.size" for i, p in enumerate(config.batch.plan)
    ]
    return dict(zip(names or ["batch.size"], [phase.size for phase in phases], strict=True))
