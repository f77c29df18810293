"""Trained paths: a curve between two networks, trained as a separate run.

The run's directory lies in the landscape's folder, with metrics, checkpoints and a report. After a
kill the run continues to the bit. ``weights.safetensors`` holds all bends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from largebatch._errors import RunFailure, UserError
from largebatch._paths import UserPath
from largebatch.landscape.networks import Networks
from largebatch.landscape.settings import Settings
from largebatch.record import RunDirectory
from largebatch.schedule import Duration
from largebatch.train import checkpoint, parse
from largebatch.train.check import check
from largebatch.train.config import (
    CheckpointConfig,
    Config,
    EmaConfig,
    EvaluateConfig,
    SnapshotConfig,
    TelemetryConfig,
)
from largebatch.train.outcome import Outcome
from largebatch.weight_space import Curve, WeightPath, bezier, polychain

COEFFICIENTS = {"bezier": bezier, "polychain": polychain}


def curve_config(settings: Settings, base: Config, folder: Path, kind: str) -> Config:
    """Return the config for training a curve: the first run's, with the curve's own settings.

    Raises:
        UserError: ``--length`` or ``--lr`` is not valid.
    """
    schedule, optim = base.schedule, base.optim
    if settings.length is not None:
        try:
            schedule = replace(schedule, length=Duration.parse(settings.length))
        except UserError as error:
            raise UserError(f"--length {settings.length}: {error}") from None
    if settings.lr is not None:
        optim = replace(optim, lr=settings.lr)
    config = replace(
        base,
        run=replace(
            base.run,
            dir=UserPath(str((folder / kind).absolute())),
            name=kind,
            seed=settings.seed,
            nproc=1,
            target=None,
        ),
        model=replace(base.model, compile=False),
        schedule=schedule,
        optim=optim,
        evaluate=EvaluateConfig(),
        probes=[],
        ema=EmaConfig(),
        snapshot=SnapshotConfig(),
        telemetry=TelemetryConfig(hardware_every=0.0),
        distributed=replace(base.distributed, engine="ddp"),
        checkpoint=CheckpointConfig(),
    )
    check(config)
    return parse.checked(config)


def train_between(
    settings: Settings,
    networks: Networks,
    folder: Path,
    kind: str,
    train: Callable[[Config, Callable[[nn.Module], nn.Module]], Outcome],
) -> WeightPath | None:
    """Train a curve from the first network to the second, or read a trained one.

    Args:
        train: function that runs a session of a run, on every rank.

    Returns:
        The path; None if a signal stopped the training, which the same command continues.
    """

    def around(model: nn.Module) -> nn.Module:
        first, second = networks.weights
        return Curve(model, first, second, COEFFICIENTS[kind], settings.bends, settings.seed)

    outcome = train(curve_config(settings, networks.run.config, folder, kind), around)
    if not outcome.finished:
        return None
    return _read(RunDirectory(outcome.directory), networks, kind, settings.bends)


def _read(directory: RunDirectory, networks: Networks, kind: str, bends: int) -> WeightPath:
    state: dict[str, Any] = checkpoint.load_weights(directory.weights)
    own = networks.weights[0]
    try:
        found = [
            {name: state[f"bends.{k}.{name}"].to(own[name]) for name in own} for k in range(bends)
        ]
    except KeyError as error:
        raise RunFailure(
            f"{directory.weights}: holds no curve of these runs ({error} is missing); delete"
            f" {directory.path} to train it anew"
        ) from None
    return WeightPath(found, COEFFICIENTS[kind])
