"""One session of a run: start the run, continue it, or find it finished."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from largebatch._errors import Lost, RunFailure, UserError
from largebatch._output import forgive_lost_output
from largebatch._paths import UserPath
from largebatch.data import settled
from largebatch.nn import merged_running_stats
from largebatch.probes import WeightAverage
from largebatch.processes.agreement import agreed, announce, require_same, together
from largebatch.processes.environment import World, detect
from largebatch.processes.freed_memory import keep_freed_memory
from largebatch.processes.group import choose_device, process_group, set_threads
from largebatch.processes.heartbeat import Heartbeat
from largebatch.processes.launch import launch_local_ranks
from largebatch.processes.lifetime import (
    StopRequest,
    die_with_launcher,
    die_with_parent,
    signals_as_before,
)
from largebatch.record import RunDirectory
from largebatch.train import checkpoint, parse
from largebatch.train.begin import begin
from largebatch.train.branch import branch, require_start
from largebatch.train.build import Around, build
from largebatch.train.check import check
from largebatch.train.conclude import conclude
from largebatch.train.config import RANK_KEYS, Config
from largebatch.train.continuation import choose_directory, headline, what_is_there, without
from largebatch.train.help import asked, help_text
from largebatch.train.outcome import Outcome, finished, outcome_of
from largebatch.train.prepare import prepare
from largebatch.train.progress import say
from largebatch.train.trainer import Trainer

AGENTS_SECONDS = 5.0  # in which all agents hear of a new host


class RanksFailed(RunFailure):
    """Ranks started by this process have failed, and have printed the reason themselves."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the ranks ended with exit code {code}; they have said why")
        self.code = code


def run(config: Config, start: Path | None = None, stop: StopRequest | None = None) -> Outcome:
    """Train as ``config`` says: start the run, continue it, or find it finished.

    There are three ways to call this function. In a single process it trains alone. In ranks
    started by a launcher, every rank must call it and gets the same outcome. With
    ``config.run.nproc`` above 1 it starts the ranks itself and returns after them. The caller's
    signal handlers are restored afterwards.

    Args:
        start: checkpoint of another run to branch off from. The branch takes over model, optimizer,
            averages and sample; times and records are its own (see :mod:`largebatch.train.branch`).
        stop: another thread may call its :meth:`~StopRequest.ask` to end the session in good order.
            None: signals end the session (in the main thread). With ``run.nproc`` above 1, ``run``
            must be called from the main thread.

    Returns:
        The outcome of the session. If the run was stopped, the same call continues it.

    Raises:
        UserError: bad input, or a ``start`` that does not fit.
        RunFailure: the run could not continue; the last checkpoint is kept.
    """
    with signals_as_before(), _determinism_as_before():
        return perform(parse.checked(config), start, stop)


def train(arguments: Sequence[str]) -> int:
    """Run the command ``largebatch train``; return its exit code.

    Raises:
        UserError: bad input, raised before any rank starts if possible.
        RunFailure: the run could not continue.
    """
    section = asked(arguments)
    if section not in (None, "all"):
        print(help_text(section))
        return 0
    config = parse.parse(arguments)
    forgive_lost_output()
    try:
        perform(config)
    except RanksFailed as failed:
        return failed.code
    return 0


def perform(config: Config, start: Path | None = None, stop: StopRequest | None = None) -> Outcome:
    """Do the work of :func:`run` without restoring signal handlers, in a process that ends then."""
    if start is not None:
        given = replace(config.checkpoint, resume=UserPath(os.path.abspath(start)))
        config = replace(config, checkpoint=given)
    check(config)
    config = replace(config, data=settled(config.data))
    world = detect()
    die_with_launcher()
    if world.launcher != "alone" and config.run.nproc > 1:
        raise UserError(
            f"run.nproc={config.run.nproc} under {world.launcher}: give one of them the number of"
            " ranks, not both"
        )
    if config.run.nproc > 1:
        return _in_local_ranks(config, start, stop)
    if world.launcher != "alone":
        die_with_parent()
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
            stop = StopRequest().install() if stop is None else stop
            return session(config, start, world, device, stop, heartbeat)
    except OSError as error:
        raise RunFailure(
            f"{world.here}: {error}; mend that and run the same command again, the last"
            " checkpoint stands"
        ) from error


def _in_local_ranks(config: Config, start: Path | None, stop: StopRequest | None) -> Outcome:
    """Start the ranks on this host and return after them."""
    if stop is not None and threading.current_thread() is not threading.main_thread():
        raise UserError(
            f"run.nproc={config.run.nproc} with a stop request: ranks are stopped by signals, which"
            " the main thread alone can take; call from there"
        )
    prepare(config, torch.device("cpu"))  # a mistake shows before any rank starts
    directory = RunDirectory(choose_directory(config))
    directory.acquire()
    try:
        if start is not None:
            require_start(directory, start)
        if directory.read_summary() is not None:  # ranks would start to find out
            return _again(directory, what_is_there(config, directory)["summary"])
    finally:
        directory.release()
    path = UserPath(str(directory.path.absolute()))
    of_rank = replace(config, run=replace(config.run, dir=path, nproc=1))
    with tempfile.TemporaryDirectory(prefix="largebatch-") as folder:
        file = Path(folder, "config.yaml")
        file.write_text(parse.dump(of_rank), encoding="utf-8")
        code = launch_local_ranks(config.run.nproc, ["train", f"--config={file}"], stop)
    if code != 0:
        raise RanksFailed(code)
    return outcome_of(directory.path)


def session(
    config: Config,
    start: Path | None,
    world: World,
    device: torch.device,
    stop: StopRequest,
    heartbeat: Heartbeat,
    around: Around | None = None,
) -> Outcome:
    """Do a session's work on one rank, once the ranks are connected; every rank must call this.

    Args:
        start, stop: as for :func:`run`.
        around: as for :func:`build`.
    """
    require_same(without(parse.flat(config), RANK_KEYS), world)
    path = Path(agreed(str(choose_directory(config)) if world.is_main else "", world))
    directory = RunDirectory(path)
    if world.is_main:
        directory.acquire()
    try:
        if start is not None:
            together(lambda: require_start(directory, start) if world.is_main else None, world)
        found = together(lambda: what_is_there(config, directory) if world.is_main else {}, world)
        found = agreed(found, world)
        if found["summary"] is not None:
            if world.is_main:
                return _again(directory, found["summary"])
            return finished(path, found["summary"])
        parts = together(lambda: build(config, world, device, around), world)
        trainer = Trainer(config, parts, directory, stop, heartbeat)
        parent = None
        if found["checkpoint"] is not None:
            saved = Path(found["checkpoint"])
            if found["branch"]:
                parent = together(lambda: branch(trainer, checkpoint.load(saved), saved), world)
            else:
                together(lambda: trainer.resume(checkpoint.load(saved)), world)
        writers = together(
            lambda: begin(config, directory, trainer, parent) if world.is_main else (), world
        )
        try:
            ended = trainer.run(writers)
        except UserError as error:
            named = error if world.world_size == 1 else UserError(f"{world.here}: {error}")
            named.one_rank = True
            announce(named, world)
            raise named from error
        except Lost as error:
            if world.is_main:
                directory.write_lost(str(error))
            raise
        finally:
            for writer in writers:
                writer.close()
        weights = {**parts.engine.weights(), **merged_running_stats(parts.model)}
        average = trainer.panel.find(WeightAverage)
        averaged = average.state() if average else {}
        if world.is_main:
            conclude(config, directory, trainer, weights if ended else None, averaged)
        if ended:
            return finished(
                path, agreed(directory.read_summary() if world.is_main else None, world)
            )
        if world.launcher == "torchrun" and world.local_world_size < world.world_size:
            # A host has joined, as a rule, and each agent stops its own ranks for it: one that has
            # not heard of it would take an early end for the end of the run, and leave.
            stop.wait(AGENTS_SECONDS)
        return Outcome(path, False, trainer.position.samples, trainer.position.steps)
    finally:
        directory.release()


def _again(directory: RunDirectory, summary: dict[str, Any]) -> Outcome:
    """Say that a run is finished, and return its outcome."""
    path = directory.path
    say(f"{path}: this run is finished ({headline(summary)})")
    if not directory.report.exists():  # it was killed between its last two files
        from largebatch.report import write_report  # at the end: a start needs none

        write_report([path], directory.report)
    say(f"report: {directory.report}")
    return finished(path, summary)


@contextmanager
def _determinism_as_before() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        if torch.are_deterministic_algorithms_enabled() != before:  # setting it loads the compiler
            torch.use_deterministic_algorithms(before)
