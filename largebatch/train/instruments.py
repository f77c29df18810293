"""Build the instruments and evaluations that a config switches on.

This is the one place that knows all of them and their order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch.data import Batch
from largebatch.data.draws import key
from largebatch.models import swapped_in
from largebatch.nn import ghost_place, merged_running_stats
from largebatch.optim import layer_rates
from largebatch.probes import (
    Instrument,
    LayerRecord,
    Moment,
    Panel,
    ParameterChecksum,
    Run,
    WeightAverage,
    WeightDistance,
    build_probes,
    short_name,
)
from largebatch.processes import World
from largebatch.processes.agreement import together
from largebatch.processes.heartbeat import Heartbeat
from largebatch.processes.lifetime import StopRequest
from largebatch.record import RunDirectory
from largebatch.schedule import Every
from largebatch.tasks import Coupled
from largebatch.train.build import Parts
from largebatch.train.config import Config
from largebatch.train.control import build_control
from largebatch.train.evaluate import evaluating, requests
from largebatch.train.evaluation import Evaluation, Evaluations, Validation
from largebatch.train.further import Judged, further
from largebatch.train.hardware_lines import HardwareLines
from largebatch.train.plateau import Plateau
from largebatch.train.snapshots import Snapshots
from largebatch.train.target import Target
from largebatch.train.telemetry import Telemetry

PROBES = 0x70726F62  # separates the stream of their dropout from the run's


def build_panel(
    config: Config,
    parts: Parts,
    directory: RunDirectory,
    heartbeat: Heartbeat,
    telemetry: Telemetry,
) -> Panel:
    """Return the instruments of a run, in the order in which they are called.

    Raises:
        UserError: a probe is not possible for this run; raised on every rank.
    """
    model, world, schedule = parts.model, parts.world, parts.schedule
    clock = schedule.clock
    found: list[Instrument] = [
        ParameterChecksum(model, world, Every(config.distributed.check_every, clock))
    ]
    if config.ema.half_life is not None:
        found.append(WeightAverage(model, config.ema.half_life.samples(clock)))
    if config.snapshot.cycles:
        found.append(Snapshots(model, schedule.cycle_ends))
    found.append(WeightDistance(model, world.is_main))
    layerwise = layer_rates(parts.optimizer)
    if layerwise is not None and not parts.engine.flattens and world.is_main:
        every = Every(config.telemetry.layers, clock)
        found.append(LayerRecord(layerwise, model, directory.layers, every, clock.epoch_samples))
    seconds = config.telemetry.hardware_every
    if seconds > 0:
        times = parts.stepper.times
        found.append(HardwareLines(parts.device, times, heartbeat, telemetry, seconds))
    if config.batch.control == "noise":
        found += together(lambda: build_control(config, parts, directory), world)
    if config.probes:
        offers = {
            "model": model,
            "optimizer": parts.optimizer,
            "engine": parts.engine,
            "task": parts.task,
            "world": world,
            "device": parts.device,
            "clock": clock,
            "schedule": schedule,
            "folder": directory.path,
            "seed": config.run.seed,
        }
        found += together(lambda: build_probes(config.probes, offers, clock), world)
    for figure, value in (config.run.target or {}).items():
        found.append(Target(parts.task, figure, value))
    if config.schedule.stop == "plateau":
        found.append(Plateau(config.schedule.patience.samples(clock)))
    for probe in found:
        if probe.moment == "gradients" and not parts.engine.own_gradients:
            raise UserError(
                f"probes: {probe.name} looks at each rank's gradients, which"
                f" distributed.engine={config.distributed.engine} keeps to itself; take ddp"
            )
        if probe.replays and not parts.engine.repeats:
            raise UserError(
                f"probes: {probe.name} takes a step's passes once more, which"
                f" distributed.engine={config.distributed.engine} gives no gradients of; take ddp"
                " or fsdp"
            )
    if isinstance(parts.task, Coupled):
        for probe in found:
            if probe.moment == "gradients" or probe.reads_squares or probe.replays:
                raise UserError(
                    f"probes: {probe.name} takes a step apart, whose samples"
                    f" task.name={config.task.name} ties together"
                )
    if config.optim.sam_rho is not None and config.optim.sam_scope == "rank":
        for probe in (each for each in found if each.reads_squares):
            raise UserError(
                f"probes: {probe.name} reads squared norms of SAM's first gradients, which"
                " optim.sam_scope=rank does not exchange; take sam_scope=global"
            )
    return Panel(found)


def build_evaluations(config: Config, parts: Parts, panel: Panel, stop: StopRequest) -> Evaluations:
    """Return the evaluations of a run; the one on the validation set is first.

    Raises:
        UserError: an entry of ``evaluate.also`` is not possible; raised on every rank.
    """
    model, every = parts.model, config.evaluate.every
    validation = Validation(parts.evaluator, parts.engine, parts.world, stop)
    found = [Evaluation("", every, validation)]
    average, snapshots = panel.find(WeightAverage), panel.find(Snapshots)
    if average is not None:
        of_average = average
        found.append(
            Evaluation("ema", every, lambda model: validation.under(model, of_average.tensors))
        )
    if snapshots is not None:
        of_members = snapshots

        def ensemble(model: nn.Module) -> Mapping[str, float]:
            if len(of_members.members) < 2:
                return {}
            return validation.of(lambda: of_members.sums(model, parts.evaluator))

        found.append(Evaluation("ensemble", every, ensemble))
    distance = panel.find(WeightDistance)
    if distance is not None:
        of_distance = distance
        found.append(
            Evaluation(
                "weight", every, lambda _: {n: float(v) for n, v in of_distance.norms().items()}
            )
        )
    judged = Judged(parts.source, parts.validation, parts.task, parts.evaluator)
    also = config.evaluate.also
    for one, run in together(lambda: further(config, judged), parts.world) if also else ():
        each = one.every or every
        found.append(Evaluation(short_name(one.name), each, _as_evaluated(run, parts)))
    return Evaluations(found, model, parts.world, stop, parts.schedule.clock)


def _as_evaluated(run: Run, parts: Parts) -> Run:
    """Return ``run`` on a model in evaluation mode, which is as before afterwards."""

    def evaluated(model: nn.Module) -> Mapping[str, float]:
        with parts.engine.evaluating(), evaluating(model, parts.device, parts.precision):
            return run(model)

    return evaluated


def build_moment(
    config: Config, parts: Parts, panel: Panel, finish: Callable[[Mapping[str, float]], None]
) -> Moment:
    """Return the view of the run for instruments; its step and number change with every step.

    Args:
        finish: asks the run to end.
    """
    squares = parts.engine.watch_squares() if panel.reads_squares else None
    validation = Validation(parts.evaluator, parts.engine, parts.world)
    model, stepper = parts.model, parts.stepper
    train = parts.precision.wrap(parts.task.train)
    devices = [parts.device] if parts.device.type == "cuda" else []

    def loss(batch: Batch) -> Tensor:
        # At a place of their own, norms add to no statistics but those that are put back.
        with (
            torch.enable_grad(),
            torch.random.fork_rng(devices=devices),
            stepper.frozen(),
            ghost_place(0, len(batch), None, stepper.ranks),
        ):
            torch.manual_seed(key(config.run.seed, PROBES))
            total, sums = train(model, batch)
        return total / sums[-1].to(total.dtype)

    def held(n: int) -> Batch:
        return next(iter(parts.evaluator.reader.read(requests(n, n, World()))))

    def evaluate(weights: Mapping[str, Tensor]) -> dict[str, float]:
        with swapped_in(model, merged_running_stats(model)):
            return validation.under(model, weights)

    first = parts.schedule.plan.step_at(0)
    return Moment(
        first,
        0,
        model,
        parts.optimizer,
        loss,
        held,
        evaluate,
        finish,
        squares,
        batch=lambda: stepper.batch,
        replay=lambda: stepper.replay,
    )
