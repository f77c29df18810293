"""Remarks printed at the start of a run about surprising effects of its config."""

from __future__ import annotations

import torch
from torch import nn

from largebatch.nn import has_batch_norm, norms
from largebatch.optim import layer_rates, optimizers
from largebatch.schedule import Schedule
from largebatch.train.atoms import Atoms
from largebatch.train.config import Config
from largebatch.train.named import beyond


def excluded(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[str]:
    """Return a remark on parameters without a trust ratio under a layer-wise optimizer."""
    layerwise = layer_rates(optimizer)
    if layerwise is None:
        return []
    names = {id(param): name for name, param in model.named_parameters()}
    excluded = [names[id(param)] for param in layerwise.excluded()]
    if not excluded:
        return [f"each of {len(names)} tensors has a rate of its own"]
    return [f"{len(excluded)} of {len(names)} tensors take the plain rate: {', '.join(excluded)}"]


def caveats(config: Config, model: nn.Module, atoms: Atoms) -> list[str]:
    """Return remarks on settings that make the trajectory depend on the number of ranks."""
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


def too_long(config: Config, schedule: Schedule) -> list[str]:
    """Return remarks on durations beyond the end of the run, which have no effect."""
    optim, total = config.optim, schedule.total_samples
    warms_up = "transition_center" in optimizers.entry(optim.name).facts.takes
    return [
        *(
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
        ),
        *(
            f"checkpoint.at: {duration} never comes: the run ends at {total:,} samples"
            for duration in config.checkpoint.at
            if beyond(duration, schedule.clock)
        ),
    ]
