"""What a run writes and prints when a session ends."""

from __future__ import annotations

import time

from torch import Tensor

from largebatch import _ops
from largebatch.record import RunDirectory
from largebatch.tasks import LOSS
from largebatch.train import checkpoint
from largebatch.train.branch import read_parent
from largebatch.train.config import Config, run_name
from largebatch.train.progress import say
from largebatch.train.trainer import Trainer


def conclude(
    config: Config,
    directory: RunDirectory,
    trainer: Trainer,
    weights: dict[str, Tensor] | None,
    averaged: dict[str, Tensor],
) -> None:
    """Write the results of a finished run, or print how to continue a stopped one.

    Args:
        weights: the whole ``state_dict``; None if the run was stopped.
        averaged: the moving average of the parameters, empty if there is none.
    """
    position, parts = trainer.position, trainer.parts
    if weights is None:
        say(
            f"stopped by {trainer.stop.name or 'a signal to another rank'} at "
            f"{position.samples:,} samples; the same command with --run.dir={directory.path} "
            "continues"
        )
        return
    checkpoint.save_weights(directory.weights, weights)
    if averaged:
        averaged = {**weights, **averaged}
        checkpoint.save_weights(directory.path / "weights_ema.safetensors", averaged)
    last = position.last or {}
    headline = parts.task.headline if parts.task.headline.name in last else LOSS
    summary = {
        "name": run_name(config),
        "headline": headline.name,
        **{
            k: v
            for k, v in last.items()
            if k not in ("split", "samples", "step", "epoch") and not isinstance(v, list)
        },
        "samples": position.samples,
        "steps": position.steps,
        "epochs": position.samples / trainer.clock.epoch_samples,
        "global_batch": config.batch.size,
        "world_size": trainer.world.world_size,
        "samples_per_second": trainer.telemetry.train_samples
        / max(trainer.telemetry.train_seconds, 1e-9),
        "wall_seconds": position.seconds,
        "start_seconds": trainer.start_seconds,
        "pipeline": config.data.pipeline,
        "ops": _ops.face(),
        "device": parts.device.type,
        "target": position.reached,
        "parent": read_parent(directory),
        "kept_checkpoints": checkpoint.named(directory.checkpoints),
        "nonfinite_steps": trainer.nonfinite.steps,
        "nonfinite_evaluations": trainer.nonfinite.evaluations,
        "weights_sha256": checkpoint.weights_sha256(weights),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    directory.write_summary(summary)
    from largebatch.report import write_report  # at the end: no start waits for its import

    write_report([directory.path], directory.report)
    figure = headline.text(last[headline.name]) if headline.name in last else "no validation"
    say(f"finished: {figure} after {position.samples:,} samples in {position.seconds:.1f} s")
    say(f"report: {directory.report}")
