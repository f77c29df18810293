"""`largebatch train`: one command that starts a run, continues it, or says that it is finished."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

import largebatch
from largebatch import _ops
from largebatch._errors import RunFailure, UserError
from largebatch.distributed.environment import World, detect
from largebatch.distributed.group import choose_device, process_group, set_threads
from largebatch.distributed.launch import launch_local_ranks
from largebatch.distributed.lifetime import LAUNCHER_VARIABLE, StopRequest, die_with_parent
from largebatch.distributed.memory import keep_freed_memory
from largebatch.nn import merged_running_stats
from largebatch.record import MetricsWriter, RunDirectory, TensorBoardMirror
from largebatch.train import checkpoint, parse
from largebatch.train.build import build, prepare
from largebatch.train.check import check
from largebatch.train.config import FREE_KEYS, Config, run_name
from largebatch.train.progress import say
from largebatch.train.trainer import Trainer

T = TypeVar("T")


def train(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code, 0.

    Raises:
        UserError: bad input, before any rank starts wherever it can be known then.
        RunFailure: the run could not go on.
    """
    config = parse.parse(arguments)
    check(config)
    world = detect()
    if world.launcher != "alone" and config.run.nproc > 1:
        raise UserError(
            f"run.nproc={config.run.nproc} under {world.launcher}: give one of them the number of"
            " ranks, not both"
        )
    if config.run.nproc > 1:
        prepare(config, torch.device("cpu"))  # a mistake shows before any rank starts
        directory = RunDirectory(_directory(config))
        directory.acquire()
        directory.release()
        return launch_local_ranks(
            config.run.nproc, ["train", *arguments, f"--run.dir={directory.path}", "--run.nproc=1"]
        )
    if world.launcher != "alone":
        launcher = os.environ.get(LAUNCHER_VARIABLE)
        die_with_parent(int(launcher) if launcher else None)
    stop = StopRequest().install()
    device = choose_device(world)
    set_threads(world)
    if device.type == "cpu":
        keep_freed_memory()
    else:
        torch.cuda.set_device(device)
    if config.run.deterministic:
        torch.use_deterministic_algorithms(True)
    backend, timeout = config.distributed.backend, config.distributed.timeout
    with process_group(world, backend, timeout, device):
        return _session(config, world, device, stop)


def _session(config: Config, world: World, device: torch.device, stop: StopRequest) -> int:
    path = Path(_agreed(str(_directory(config)) if world.is_main else "", world))
    directory = RunDirectory(path)
    if world.is_main:
        directory.acquire()
    try:
        found = _together(lambda: _what_is_there(config, directory) if world.is_main else {}, world)
        found = _agreed(found, world)
        if found["finished"]:
            if world.is_main:
                say(f"{path}: this run is finished (top1 {found['top1']})")
                say(f"report: {directory.report}")
            return 0
        parts = _together(lambda: build(config, world, device), world)
        trainer = Trainer(config, parts, directory, stop)
        _together(lambda: trainer.resume(_load(found["checkpoint"])), world)
        writers = _open(config, directory, trainer) if world.is_main else ()
        try:
            finished = trainer.run(writers)
        except UserError as error:
            error.one_rank = True
            raise
        except RuntimeError as error:
            raise _lost_peer(error, world) from error
        finally:
            for writer in writers:
                writer.close()
        weights = {**parts.model.state_dict(), **merged_running_stats(parts.model)}
        if world.is_main:
            _conclude(config, directory, trainer, weights if finished else None)
        return 0
    finally:
        directory.release()


def _directory(config: Config) -> Path:
    """Return the run directory: the one given, this config's unfinished run, or a new one."""
    if config.run.dir is not None:
        return Path(config.run.dir)
    new = RunDirectory.default_path(run_name(config))
    if config.checkpoint.resume != "auto":
        return new
    for path in sorted(new.parent.glob(f"{new.name[:-16]}-*"), reverse=True):
        directory = RunDirectory(path)
        if directory.finished() or checkpoint.latest_name(directory.checkpoints) == "none":
            continue
        try:
            saved = parse.read_config(directory.config)
            directory.acquire(wait=0)
            directory.release()
        except UserError:
            continue
        if not _differences(config, saved):
            return path
    return new


def _what_is_there(config: Config, directory: RunDirectory) -> dict[str, Any]:
    """Decide on rank 0 what this command does with the run directory.

    Raises:
        UserError: the directory holds another run, or may not be continued.
    """
    resume = config.checkpoint.resume
    found: dict[str, Any] = {"finished": False, "checkpoint": None}
    if directory.config.exists():
        different = _differences(config, parse.read_config(directory.config))
        if different:
            key, (now, before) = next(iter(different.items()))
            raise UserError(
                f"{key}={now!r}: the run in {directory.path} was started with {before!r}; use that"
                " or another run.dir"
            )
        if resume == "never":
            raise UserError(
                f"checkpoint.resume=never: {directory.path} holds a run; choose another run.dir or"
                " resume=auto"
            )
        summary = directory.read_summary()
        if summary is not None:
            return {"finished": True, "checkpoint": None, "top1": summary.get("top1")}
        found["checkpoint"] = checkpoint.newest_valid(directory.checkpoints, say)
    if found["checkpoint"] is None and resume not in ("auto", "never"):
        checkpoint.load(Path(resume))
        found["checkpoint"] = str(Path(resume).resolve())
    return found


def _differences(config: Config, saved: Config) -> dict[str, tuple[Any, Any]]:
    """Return the keys that shape the trajectory and differ, with both values."""
    now, before = parse.flat(config), parse.flat(saved)
    return {
        key: (value, before[key])
        for key, value in now.items()
        if value != before[key] and key not in FREE_KEYS and key.partition(".")[0] not in FREE_KEYS
    }


def _agreed(value: Any, world: World) -> Any:
    """Return rank 0's value on every rank."""
    if world.world_size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _lost_peer(error: RuntimeError, world: World) -> RuntimeError:
    """Say in one line that another rank is gone, where that is what ``error`` means."""
    text = str(error)
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out")
    if world.world_size == 1 or not any(sign in text for sign in signs):
        return error
    return RunFailure(
        f"rank {world.rank}: another rank has ended or is out of reach; the same command continues"
        f" from the last checkpoint ({text.splitlines()[0][:120]})"
    )


def _together(work: Callable[[], T], world: World) -> T:
    """Do ``work`` on every rank; if it is a user's mistake on any, all ranks raise the first."""
    mistake: UserError | None = None
    try:
        result = work()
    except UserError as error:
        mistake = error
    if world.world_size > 1:
        mistakes: list[Any] = [None] * world.world_size
        dist.all_gather_object(mistakes, mistake)
        mistake = next((found for found in mistakes if found is not None), None)
    if mistake is not None:
        raise mistake
    return result


def _load(path: str | None) -> dict[str, Any] | None:
    return None if path is None else checkpoint.load(Path(path))


def _open(
    config: Config, directory: RunDirectory, trainer: Trainer
) -> tuple[MetricsWriter, TensorBoardMirror]:
    """Write the config, open the metrics where the run goes on, and say what it will do."""
    position, schedule, parts = trainer.position, trainer.schedule, trainer.parts
    if not directory.config.exists():
        directory.write_config(parse.dump(config))
    writer = MetricsWriter(directory.metrics)
    writer.truncate_after(position.samples)
    say(f"largebatch {largebatch.__version__}: {run_name(config)} in {directory.path}")
    say(
        f"{len(parts.source):,} training and {len(parts.validation):,} validation samples, "
        f"{sum(p.numel() for p in parts.model.parameters()):,} parameters, "
        f"{trainer.world.world_size} rank(s) on {parts.device.type}, {_ops.face()} ops"
    )
    for line in schedule.describe():
        say(line)
    for warning in parts.caveats:
        say(warning)
    if position.samples:
        say(f"continuing at {position.samples:,} of {schedule.total_samples:,} samples")
    resumed_at = position.samples or None
    return writer, TensorBoardMirror(directory.tensorboard, resumed_at)


def _conclude(
    config: Config,
    directory: RunDirectory,
    trainer: Trainer,
    weights: dict[str, torch.Tensor] | None,
) -> None:
    """Write what a finished run leaves, its weights among it; or say how a stopped one goes on."""
    position, parts = trainer.position, trainer.parts
    if weights is None:
        say(
            f"stopped by {trainer.stop.name or 'a signal to another rank'} at "
            f"{position.samples:,} samples; the same command with --run.dir={directory.path} "
            "continues"
        )
        return
    checkpoint.save_weights(directory.weights, weights)
    if trainer.average is not None:
        averaged = {**weights, **trainer.average.tensors}
        checkpoint.save_weights(directory.path / "weights_ema.safetensors", averaged)
    last = position.last or {}
    summary = {
        "name": run_name(config),
        **{k: v for k, v in last.items() if k not in ("split", "samples", "step", "epoch")},
        "samples": position.samples,
        "steps": position.steps,
        "epochs": position.samples / trainer.clock.epoch_samples,
        "global_batch": config.batch.size,
        "world_size": trainer.world.world_size,
        "samples_per_second": trainer.telemetry.train_samples
        / max(trainer.telemetry.train_seconds, 1e-9),
        "wall_seconds": position.seconds,
        "pipeline": config.data.pipeline,
        "ops": _ops.face(),
        "device": parts.device.type,
        "target": position.reached,
        "weights_sha256": checkpoint.weights_sha256(weights),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    directory.write_summary(summary)
    from largebatch.report import write_report

    write_report([directory.path], directory.report)
    top1 = f"top1 {100 * last['top1']:.2f}%" if "top1" in last else "no validation"
    say(f"finished: {top1} after {position.samples:,} samples in {position.seconds:.1f} s")
    say(f"report: {directory.report}")
