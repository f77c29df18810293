"""What a run writes and prints when a session begins."""

from __future__ import annotations

from typing import Any

import largebatch
from largebatch import _ops
from largebatch.record import MetricsWriter, RunDirectory, TensorBoardMirror
from largebatch.tasks import Task
from largebatch.train import parse
from largebatch.train.branch import write_parent
from largebatch.train.config import Config, run_name
from largebatch.train.progress import say
from largebatch.train.prometheus import PrometheusEndpoint
from largebatch.train.telemetry import Writers
from largebatch.train.trainer import Trainer


def begin(
    config: Config,
    directory: RunDirectory,
    trainer: Trainer,
    parent: dict[str, Any] | None = None,
) -> Writers:
    """Write the config and the task, open the metrics file, and print what the run will do.

    Args:
        parent: origin of a branch, if the branch begins now.

    Raises:
        UserError: ``telemetry.prometheus_port`` is taken.
    """
    position, schedule, parts = trainer.position, trainer.schedule, trainer.parts
    port = config.telemetry.prometheus_port
    endpoint = None if port is None else PrometheusEndpoint(port)  # refused before a file is made
    if not directory.config.exists():
        write_parent(directory, parent)
        directory.write_config(parse.dump(config))
    directory.write_lost(None)
    if not directory.task.exists():
        directory.write_task(_facts(config, parts.task))
    writer = MetricsWriter(directory.metrics)
    kept = writer.truncate_after(position.samples)
    say(f"largebatch {largebatch.__version__}: {run_name(config)} in {directory.path}")
    say(
        f"{len(parts.source):,} training and {len(parts.validation):,} validation samples, "
        f"{sum(p.numel() for p in parts.model.parameters()):,} parameters, "
        f"{trainer.world.world_size} rank(s) on {parts.device.type}, {_ops.face()} ops"
    )
    for line in schedule.describe():
        say(line)
    for remark in (kept, *parts.remarks):
        if remark:
            say(remark)
    if parent is not None:
        say(
            f"branching off at {position.samples:,} of {schedule.total_samples:,} samples, from"
            f" {parent['checkpoint']}"
        )
    elif position.samples:
        say(f"continuing at {position.samples:,} of {schedule.total_samples:,} samples")
    mirror = TensorBoardMirror(directory.tensorboard, position.samples or None)
    if endpoint is None:
        return writer, mirror
    say(f"figures for Prometheus: http://127.0.0.1:{endpoint.port}/metrics")
    return writer, mirror, endpoint


def _facts(config: Config, task: Task[Any]) -> dict[str, Any]:
    """Return what those who read the run without its task are to know of it."""
    figures = task.read([0.0] * (1 + len(task.figures)) + [1.0])
    return {
        "task": config.task.name,
        "headline": task.headline.record(),
        "figures": {name: task.known(name).record() for name in figures},
    }
