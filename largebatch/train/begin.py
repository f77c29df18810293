"""What a run writes and says when it begins."""

from __future__ import annotations

from typing import Any

import largebatch
from largebatch import _ops
from largebatch.optim import layer_rates
from largebatch.record import MetricsWriter, RunDirectory, TensorBoardMirror
from largebatch.train import parse
from largebatch.train.branch import write_parent
from largebatch.train.config import Config, run_name
from largebatch.train.layers import LayerRecord
from largebatch.train.progress import say
from largebatch.train.prometheus import PrometheusEndpoint
from largebatch.train.telemetry import Every, Writers
from largebatch.train.trainer import Trainer


def begin(
    config: Config,
    directory: RunDirectory,
    trainer: Trainer,
    parent: dict[str, Any] | None = None,
) -> Writers:
    """Write the config, open the metrics where the run goes on, and say what it will do.

    Args:
        parent: where a branch comes from, if it begins now.

    Raises:
        UserError: ``telemetry.prometheus_port`` is taken.
    """
    position, schedule, parts = trainer.position, trainer.schedule, trainer.parts
    port = config.telemetry.prometheus_port
    endpoint = None if port is None else PrometheusEndpoint(port)  # refused before a file is made
    if not directory.config.exists():
        write_parent(directory, parent)
        directory.write_config(parse.dump(config))
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
    layerwise = layer_rates(parts.optimizer)
    if layerwise is not None and not parts.engine.flattens:
        trainer.layers = LayerRecord(
            layerwise,
            parts.model,
            directory.layers,
            Every(config.telemetry.layers, trainer.clock),
            trainer.clock.epoch_samples,
            position.samples,
        )
    for remark in (kept, trainer.layers and trainer.layers.kept, *parts.remarks):
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
