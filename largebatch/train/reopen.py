"""Reopen a past run: its config, its data, and its model with the saved weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch.data import Delivery, Order, Source, build_source
from largebatch.data.source import Split
from largebatch.processes import World
from largebatch.record import RunDirectory
from largebatch.tasks import Task, build_task
from largebatch.train import checkpoint, parse
from largebatch.train.atoms import make_atoms, share_of
from largebatch.train.config import Config
from largebatch.train.coupling import coupling_of
from largebatch.train.evaluate import Evaluator, evaluation_batch, streams_of
from largebatch.train.precision import Precision
from largebatch.train.prepare import make_model
from largebatch.train.registries import chosen


@dataclass
class Reopened:
    """A past run, reopened on one rank.

    Attributes:
        validation: the run's validation data.
        model: the model with the saved weights.
    """

    config: Config
    device: torch.device
    precision: Precision
    task: Task[Any]
    validation: Source
    model: nn.Module

    def source(self, split: Split) -> Source:
        """Return the data of a split."""
        if split == "val":
            return self.validation
        return build_source(self.config.data, split, self.config.model.num_classes)

    def evaluator(
        self, source: Source, world: World, count: int | None = None, order: Order | None = None
    ) -> Evaluator:
        """Return an evaluator of ``count`` samples of a source, by default of all samples.

        Samples are batched as in the run's own evaluation on one rank, so that the figures agree to
        the bit.
        """
        config, streams = self.config, streams_of(source)
        delivery = Delivery(
            config.run.seed, self.device, False, self.precision.dtype, config.model.channels_last
        )
        reader = source.reader(config.data, delivery)
        count = len(source) if count is None else count
        share = share_of(largest_batch(config), make_atoms(config, self.model, self.task), world)
        micro = config.batch.micro if isinstance(config.batch.micro, int) else None
        batch = evaluation_batch(micro, share, count)
        coupling = coupling_of(self.task, world, self.precision, self.device)
        form = (world, self.device, self.precision, streams, coupling, order)
        return Evaluator(self.task, reader, count, batch, *form)


def reopen(
    path: Path, overrides: Sequence[str], allow_imports: bool, device: torch.device
) -> Reopened:
    """Reopen the run in a run directory, with its final weights or else its newest checkpoint's.

    Args:
        path: a run directory, or a checkpoint of one.
        overrides: options that override its config, such as the present directory of the data.
        allow_imports: whether code that the config names may be imported and called. Otherwise a
            run directory is only data, and no code of its author runs.

    Raises:
        UserError: there is no such run or no data, the weights are damaged or do not fit, or the
            config names code.
    """
    directory = directory_of(path)
    config = _config(directory, overrides, allow_imports)
    precision = Precision(config.precision, device)
    source = build_source(config.data, "val", config.model.num_classes)
    task = build_task(config.task, source.offers())
    model = make_model(config, source, task, precision, device)
    try:
        model.load_state_dict(weights_at(path, directory))
    except RuntimeError as error:
        raise UserError(f"{path}: its weights do not fit model.name: {error}") from None
    return Reopened(config, device, precision, task, source, model)


def directory_of(path: Path) -> RunDirectory:
    """Return the run directory at ``path``, or the run directory of the checkpoint at ``path``.

    Raises:
        UserError: ``path`` is neither.
    """
    directory = RunDirectory(path.parent.parent if path.parent.name == "checkpoints" else path)
    if not directory.config.is_file():
        raise UserError(f"{path}: neither a run directory nor a checkpoint of one")
    return directory


def largest_batch(config: Config) -> int:
    """Return the largest batch in the phases of a config."""
    sizes = [phase.size or config.batch.size for phase in config.batch.plan]
    return max(sizes or [config.batch.size])


def weights_at(path: Path, directory: RunDirectory) -> dict[str, Tensor]:
    """Return the weights and buffers of a run, or of one of its checkpoints, on the CPU.

    Raises:
        UserError: there are no weights, or they are damaged.
    """
    if path == directory.path and directory.weights.exists():
        return checkpoint.load_weights(directory.weights)
    if path == directory.path:
        newest = checkpoint.newest_valid(directory.checkpoints, print, set_aside=False)
        if newest is None:
            raise UserError(f"{path}: has no weights and no valid checkpoint yet")
        path = Path(newest)
    model: dict[str, Tensor] = checkpoint.load(path)["model"]
    return model


def _config(directory: RunDirectory, overrides: Sequence[str], allow_imports: bool) -> Config:
    config = parse.read_config(directory.config, overrides, allow_imports)
    for registry, name in chosen(config):
        if registry.imports(name) and not allow_imports:
            raise UserError(
                f"{directory.path}: {registry.key}={name!r} is code that would be imported and "
                "called; --allow-imports does so, for a run whose code you would run yourself"
            )
    if config.data.root is not None and not Path(config.data.root).exists():
        raise UserError(
            f"{directory.path}: data.root={str(config.data.root)!r} is not there; --data.root DIR "
            "says where the data are now"
        )
    # Its weights come from the run: those it started from may be gone.
    return replace(config, model=replace(config.model, init_from=None))
