"""From a config to the live parts of a run: data, model, optimizer, engine."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from largebatch._errors import UserError
from largebatch.data import Delivery, Source, StreamOrder, build_source
from largebatch.engine import Engine, build_engine
from largebatch.models import build_model
from largebatch.nn import (
    has_batch_norm,
    join_ranks,
    minimum_samples,
    norms,
    spans_ranks,
    wrong_span,
)
from largebatch.optim import SAM, Clipping, build_optimizer, layer_rates, optimizers
from largebatch.processes import World
from largebatch.processes.agreement import gathered, require_same, together
from largebatch.schedule import Schedule
from largebatch.tasks import Task, Votes, build_task
from largebatch.train.config import Config, engine_terms
from largebatch.train.evaluate import Evaluator, evaluation_batch
from largebatch.train.feed import Atoms, Feed
from largebatch.train.finite import infinite_constants
from largebatch.train.micro import largest_micro, memory_free
from largebatch.train.named import beyond
from largebatch.train.precision import Precision
from largebatch.train.stepper import Stepper
from largebatch.train.streams import StreamMemory

MIXING_GROUP = 32  # samples that mixup draws partners from where no ghost size is set


@dataclass
class Parts:
    """The live parts of a run on one rank.

    ``constants`` are what in the model is not finite and need not be, see `infinite_constants`.
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


@dataclass
class Prepared:
    """What a config and its data say before any rank works: nothing here is shared."""

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
    model = make_model(config, source, task, precision, device)
    atoms = make_atoms(config, model, task)
    schedule = Schedule(
        config.schedule,
        config.batch,
        config.optim.lr,
        config.optim.scaling,
        len(source),
        atoms.minimum,
        config.snapshot.cycles or None,
    )
    for extent in {phase.extent for phase in schedule.plan.phases} - {None}:
        example = source.example(
            2, Delivery(config.run.seed, device, True, precision.dtype), extent
        )
        task.try_model(model, config.model.name, example, training=False)
    constants = infinite_constants(model)
    return Prepared(source, validation, task, model, precision, atoms, schedule, constants)


def build(config: Config, world: World, device: torch.device) -> Parts:
    """Make every part of the run that ``config`` describes.

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
        prepared.model,
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
    largest_share = share_of(max(phase.size for phase in phases), atoms, world)
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
        *_excluded(optimizer, model),
        *_caveats(config, model, atoms),
        *_too_long(config, schedule),
        *(
            f"checkpoint.at: {duration} never comes: the run ends at"
            f" {schedule.total_samples:,} samples"
            for duration in config.checkpoint.at
            if beyond(duration, schedule.clock)
        ),
    ]
    engine.adopt(optimizer, precision.scaler)
    engine.skip = config.run.on_nonfinite == "skip"
    if config.model.compile:
        model.compile()
    order = source.order(config.run.seed)
    if isinstance(order, StreamOrder):
        order.require_divides(step_sizes(config, schedule))
    feed = Feed(
        schedule.plan,
        order,
        reader,
        world,
        atoms,
        fitting,
        engine.lockstep,
    )
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
    )
    carry = task.carry()
    fits = min(fitting.values(), default=None)
    micro = config.batch.micro if isinstance(config.batch.micro, int) else fits
    judged = evaluation_batch(micro, largest_share, len(validation))
    evaluator = Evaluator(task, val_reader, len(validation), judged, world, device, precision)
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
        prepared.constants,
    )


def share_of(size: int, atoms: Atoms, world: World) -> int:
    """Return the most samples of a rank in a step of ``size``, in whole atoms."""
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
    """Return ``atoms`` with the ranks that hold a ghost together."""
    if not spans_ranks(config.norm):
        return atoms
    return replace(atoms, span=config.norm.sync_ranks or world.world_size)


def _sharpness_aware(
    config: Config, model: nn.Module, optimizer: torch.optim.Optimizer
) -> SAM | None:
    if config.optim.sam_rho is None:
        return None
    return SAM(optimizer, model, config.optim.sam_rho, config.optim.sam_scope)


def _excluded(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[str]:
    """Say which parameters take the plain rate under an optimizer with a rate a layer."""
    layerwise = layer_rates(optimizer)
    if layerwise is None:
        return []
    names = {id(param): name for name, param in model.named_parameters()}
    excluded = [names[id(param)] for param in layerwise.excluded()]
    listed = f": {', '.join(excluded)}" if excluded else ""
    return [f"{len(excluded)} of {len(names)} tensors do not adapt their rate{listed}"]


def _caveats(config: Config, model: nn.Module, atoms: Atoms) -> list[str]:
    """Say where the trajectory depends on the number of ranks after all."""
    lines = []
    micros = (config.batch.micro, *(phase.micro for phase in config.batch.plan))
    if atoms.span and not atoms.size and (config.norm.sync_ranks or any(micros)):
        held = "its share of the step" if not any(micros) else "batch.micro"
        lines.append(
            f"norm.kind={config.norm.kind} takes statistics over {atoms.span} ranks with {held}"
            " each: another number of ranks or another batch.micro gives another run"
            " (norm.ghost_size sets the samples instead)"
        )
    if atoms.span and (config.data.mixup or config.data.cutmix):
        lines.append("mixup partners are drawn inside a rank's part of a ghost: ranks change them")
    if norms.entry(config.norm.kind).facts.per_forward and has_batch_norm(model):
        lines.append(
            f"norm.kind={config.norm.kind} takes statistics per forward pass: another number of"
            " ranks or another batch.micro gives another run (norm.kind=ghost does not)"
        )
    if config.optim.sam_scope == "rank":
        lines.append(
            "optim.sam_scope=rank perturbs by each rank's own gradient: another number of ranks"
            " gives another run (global does not)"
        )
    random = (nn.modules.dropout._DropoutNd,)
    if any(isinstance(m, random) and m.p > 0 for m in model.modules()) or config.model.drop_path:
        lines.append("dropout is drawn per forward pass: it depends on ranks and batch.micro")
    return lines


def _too_long(config: Config, schedule: Schedule) -> list[str]:
    """Say which durations outlast the run, so that what they are for does not happen."""
    optim, total = config.optim, schedule.total_samples
    warms_up = "transition_center" in optimizers.entry(optim.name).facts.takes
    return [
        f"{key}={duration} is longer than the run's {total:,} samples: {outcome}"
        for key, duration, outcome in (
            (
                "ema.half_life",
                config.ema.half_life,
                "half of the average is the weights it began at",
            ),
            ("telemetry.every", config.telemetry.every, "metrics.jsonl gets no train line"),
            (
                "optim.transition_center",
                optim.transition_center if warms_up else None,
                "RMSprop stays the larger part of the update",
            ),
        )
        if duration is not None and beyond(duration, schedule.clock)
    ]


def make_model(
    config: Config, source: Source, task: Task[Any], precision: Precision, device: torch.device
) -> nn.Module:
    """Build the model from the run's seed: the same weights on every rank and in every session."""

    def trial(model: nn.Module, training: bool) -> None:
        first = next(model.parameters(), torch.zeros(()))
        delivery = Delivery(config.run.seed, first.device, training, first.dtype)
        task.try_model(model, config.model.name, source.example(2, delivery), training)

    return build_model(
        config.model, config.norm, source.offers(), precision.dtype, config.run.seed, trial
    ).to(device)


def step_sizes(config: Config, schedule: Schedule) -> dict[str, int]:
    """Return the samples of a step in every phase, by the key that says so."""
    phases = schedule.plan.phases
    names = [
        f"batch.plan[{i}].size" if p.size else "batch.size" for i, p in enumerate(config.batch.plan)
    ]
    return dict(zip(names or ["batch.size"], [phase.size for phase in phases], strict=True))


def make_atoms(config: Config, model: nn.Module, task: Task[Any]) -> Atoms:
    """Return what a step may not divide: a ghost batch, or a sample where no norm reads a batch.

    Raises:
        UserError: the norms ask for other ghosts than the task.
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
