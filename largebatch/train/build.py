"""Build the live parts of a run from a config: data, model, optimizer, engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import nn

from largebatch.data import Delivery, Source
from largebatch.engine import Engine, build_engine
from largebatch.nn import (
    join_ranks,
)
from largebatch.optim import SAM, Clipping, build_optimizer
from largebatch.processes import World
from largebatch.processes.agreement import gathered, require_same, together
from largebatch.schedule import Schedule
from largebatch.tasks import Task
from largebatch.train.atoms import check_span, share_of, with_span
from largebatch.train.config import Config, engine_terms
from largebatch.train.coupling import coupling_of
from largebatch.train.evaluate import Evaluator, evaluation_batch, streams_of
from largebatch.train.feed import Feed
from largebatch.train.finite import infinite_constants
from largebatch.train.micro import largest_micro, memory_free
from largebatch.train.precision import Precision
from largebatch.train.prepare import prepare
from largebatch.train.remarks import caveats, excluded, too_long
from largebatch.train.stepper import Stepper
from largebatch.train.streams import StreamMemory

Around: TypeAlias = Callable[[nn.Module], nn.Module]
"""Returns what is trained in a model's place: it is called as that is, with the same norms."""


@dataclass
class Parts:
    """The live parts of a run on one rank.

    ``constants`` names the model's tensors that may be infinite, see `infinite_constants`.
    """

    world: World
    device: torch.device
    source: Source
    validation: Source
    model: nn.Module
    task: Task[Any]
    schedule: Schedule
    optimizer: torch.optim.Optimizer
    engine: Engine
    precision: Precision
    feed: Feed
    stepper: Stepper
    streams: StreamMemory | None
    evaluator: Evaluator
    remarks: list[str]
    constants: frozenset[str]


def build(
    config: Config, world: World, device: torch.device, around: Around | None = None
) -> Parts:
    """Build every part of the run that ``config`` describes.

    Args:
        around: wraps the model for training; None: the model itself is trained.

    Raises:
        UserError: data are missing or damaged, or parts do not fit together.
    """
    check_span(config, world)
    # Before the engine's first message: a rank whose data are missing would leave others waiting.
    prepared = together(lambda: prepare(config, device), world)
    require_same(
        {
            "the number of training samples": len(prepared.source),
            "the number of validation samples": len(prepared.validation),
            "what the data offer": {k: str(v) for k, v in prepared.source.offers().items()},
        },
        world,
    )
    source, validation, task, model = (
        prepared.source,
        prepared.validation,
        prepared.task,
        prepared.model if around is None else around(prepared.model),
    )
    precision, schedule = prepared.precision, prepared.schedule
    atoms = with_span(prepared.atoms, config, world)
    ranks = None
    if atoms.span and world.world_size > 1:
        # A group of their own: the norms' messages never mix with those of the gradients.
        timeout = timedelta(seconds=config.distributed.timeout)
        ranks = dist.new_subgroups(atoms.span, timeout=timeout)[0]
        join_ranks(model, ranks)
    channels_last = config.model.channels_last
    reader, val_reader = (
        part.reader(
            config.data,
            Delivery(config.run.seed, device, train, precision.dtype, channels_last),
        )
        for part, train in ((source, True), (validation, False))
    )
    phases = schedule.plan.phases
    largest_share = share_of(schedule.largest, atoms, world)
    fitting: dict[int | None, int] = {}
    # Measured before an engine divides the model, on samples as large as the phase's.
    for extent in {phase.extent: None for phase in phases if phase.micro == "auto"}:
        delivery = Delivery(config.run.seed, device, True, precision.dtype, channels_last)
        samples = atoms.size if atoms.size > 1 else 8
        sample = source.example(samples, delivery, extent)
        free = memory_free(device, world.local_world_size)
        found = largest_micro(model, task, precision, sample, atoms.size, largest_share, free)
        fitting[extent] = min(gathered(found, world))
    engine = build_engine(model, world, config.distributed, engine_terms(config))
    optimizer = build_optimizer(config.optim, model)
    clip = Clipping(config.optim, model, optimizer)
    sam = _sharpness_aware(config, model, optimizer)
    remarks = [
        *excluded(optimizer, model),
        *caveats(config, model, atoms),
        *too_long(config, schedule),
    ]
    engine.adopt(optimizer, precision.scaler)
    engine.skip = config.run.on_nonfinite == "skip"
    if config.model.compile:
        model.compile()
    feed = Feed(
        schedule.plan,
        source.order(config.run.seed),
        reader,
        world,
        atoms,
        fitting,
        engine.lockstep,
    )
    half_life = config.norm.half_life
    coupling = coupling_of(task, world, precision, device)
    stepper = Stepper(
        model,
        task,
        engine,
        precision,
        device,
        clip,
        sam,
        config.run.seed,
        leaves_out=config.data.skip_corrupt > 0,
        ranks=ranks,
        half_life=None if half_life is None else half_life.samples(schedule.clock),
        coupling=coupling,
    )
    carry = task.carry()
    fits = min(fitting.values(), default=None)
    micro = config.batch.micro if isinstance(config.batch.micro, int) else fits
    judged = evaluation_batch(micro, largest_share, len(validation))
    evaluator = Evaluator(
        task,
        val_reader,
        len(validation),
        judged,
        world,
        device,
        precision,
        streams_of(validation),
        coupling,
        parts=config.evaluate.parts,
    )
    return Parts(
        world,
        device,
        source,
        validation,
        model,
        task,
        schedule,
        engine.optimizer,
        engine,
        precision,
        feed,
        stepper,
        None if carry is None else StreamMemory(carry, feed, world, device),
        evaluator,
        remarks,
        prepared.constants if around is None else infinite_constants(model),
    )


def _sharpness_aware(
    config: Config, model: nn.Module, optimizer: torch.optim.Optimizer
) -> SAM | None:
    if config.optim.sam_rho is None:
        return None
    return SAM(optimizer, model, config.optim.sam_rho, config.optim.sam_scope)
