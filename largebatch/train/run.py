"""`largebatch train`: one command that starts a run, continues it, or says that it is finished."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from largebatch._errors import RunFailure, UserError
from largebatch._output import forgive_lost_output
from largebatch.distributed.sharding import whole
from largebatch.nn import merged_running_stats
from largebatch.processes.agreement import agreed, announce, require_same, together
from largebatch.processes.environment import World, detect
from largebatch.processes.freed_memory import keep_freed_memory
from largebatch.processes.group import choose_device, process_group, set_threads
from largebatch.processes.heartbeat import Heartbeat
from largebatch.processes.launch import launch_local_ranks
from largebatch.processes.lifetime import LAUNCHER_VARIABLE, StopRequest, die_with_parent
from largebatch.record import RunDirectory
from largebatch.report import write_report
from largebatch.train import checkpoint, parse
from largebatch.train.begin import begin
from largebatch.train.build import build, prepare
from largebatch.train.check import check
from largebatch.train.conclude import conclude
from largebatch.train.config import RANK_KEYS, Config
from largebatch.train.continuation import choose_directory, what_is_there, without
from largebatch.train.progress import say
from largebatch.train.trainer import Trainer

AGENTS_SECONDS = 5.0  # in which all agents hear of a new host


def train(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code, 0.

    Raises:
        UserError: bad input, before any rank starts wherever it can be known then.
        RunFailure: the run could not go on.
    """
    config = parse.parse(arguments)
    check(config)
    forgive_lost_output()
    world = detect()
    if world.launcher != "alone" and config.run.nproc > 1:
        raise UserError(
            f"run.nproc={config.run.nproc} under {world.launcher}: give one of them the number of"
            " ranks, not both"
        )
    if config.run.nproc > 1:
        prepare(config, torch.device("cpu"))  # a mistake shows before any rank starts
        directory = RunDirectory(choose_directory(config))
        directory.acquire()
        directory.release()
        return launch_local_ranks(
            config.run.nproc,
            ["train", *arguments, f"--run.dir={directory.path.absolute()}", "--run.nproc=1"],
        )
    if world.launcher != "alone":
        launcher = os.environ.get(LAUNCHER_VARIABLE)
        die_with_parent(int(launcher) if launcher else None)
    device = choose_device(world)
    set_threads(world)
    if device.type == "cpu":
        keep_freed_memory()
    else:
        torch.cuda.set_device(device)
    if config.run.deterministic:
        torch.use_deterministic_algorithms(True)
    plan = config.distributed
    try:
        with process_group(world, plan.backend, plan.timeout, device, plan.heartbeat) as heartbeat:
            # Not before: a rank that waits for others has nothing to save, and is to end at once.
            stop = StopRequest().install()
            return _session(config, world, device, stop, heartbeat)
    except OSError as error:
        raise RunFailure(
            f"{world.here}: {error}; mend that and run the same command again, the last"
            " checkpoint stands"
        ) from error


def _session(
    config: Config, world: World, device: torch.device, stop: StopRequest, heartbeat: Heartbeat
) -> int:
    require_same(without(parse.flat(config), RANK_KEYS), world)
    path = Path(agreed(str(choose_directory(config)) if world.is_main else "", world))
    directory = RunDirectory(path)
    if world.is_main:
        directory.acquire()
    try:
        found = together(lambda: what_is_there(config, directory) if world.is_main else {}, world)
        found = agreed(found, world)
        if found["finished"]:
            if world.is_main:
                say(f"{path}: this run is finished (top1 {found['top1']})")
                if not directory.report.exists():  # it was killed between its last two files
                    write_report([path], directory.report)
                say(f"report: {directory.report}")
            return 0
        parts = together(lambda: build(config, world, device), world)
        trainer = Trainer(config, parts, directory, stop, heartbeat)
        if found["checkpoint"] is not None:
            saved = Path(found["checkpoint"])
            together(lambda: trainer.resume(checkpoint.load(saved)), world)
        writers = together(
            lambda: begin(config, directory, trainer) if world.is_main else (), world
        )
        try:
            finished = trainer.run(writers)
        except UserError as error:
            named = error if world.world_size == 1 else UserError(f"{world.here}: {error}")
            named.one_rank = True
            announce(named, world)
            raise named from error
        finally:
            for writer in writers:
                writer.close()
        weights = {**parts.engine.weights(), **merged_running_stats(parts.model)}
        averaged = whole(trainer.average.tensors) if trainer.average else {}
        if world.is_main:
            conclude(config, directory, trainer, weights if finished else None, averaged)
        agents = world.launcher == "torchrun" and world.local_world_size < world.world_size
        if agents and not finished:
            # A host has joined, as a rule, and each agent stops its own ranks for it: one that has
            # not heard of it would take an early end for the end of the run, and leave.
            stop.wait(AGENTS_SECONDS)
        return 0
    finally:
        directory.release()
