"""`largebatch eval`: the validation figures of a run or of one of its checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch

from largebatch._errors import UserError
from largebatch.data import Pipeline, build_source
from largebatch.distributed import World
from largebatch.distributed.group import choose_device
from largebatch.record import RunDirectory
from largebatch.tasks import build_task
from largebatch.train import checkpoint, parse
from largebatch.train.build import EVALUATION_BATCH, make_model
from largebatch.train.evaluate import Evaluator
from largebatch.train.precision import Precision


def assess(path: Path) -> dict[str, float]:
    """Return ``loss``, ``top1``, ... and ``count`` over the validation set.

    Args:
        path: a run directory (its final weights, else its newest checkpoint) or a checkpoint of
            one.

    Raises:
        UserError: neither is there, or the weights are damaged or do not fit.
    """
    directory = RunDirectory(path.parent.parent if path.parent.name == "checkpoints" else path)
    if not directory.config.exists():
        raise UserError(f"{path}: neither a run directory nor a checkpoint of one")
    config = parse.read_config(directory.config)
    device, world = choose_device(World()), World()
    precision = Precision(config.precision, device)
    source = build_source(config.data, "val", config.model.num_classes)
    model = make_model(config, source, precision, device)
    try:
        model.load_state_dict(_weights(path, directory))
    except RuntimeError as error:
        raise UserError(f"{path}: its weights do not fit model.name: {error}") from None
    task = build_task(config.task, source.num_classes)
    pipeline = Pipeline(
        source,
        config.data,
        config.run.seed,
        device,
        False,
        precision.dtype,
        config.model.channels_last,
    )
    batch = min(EVALUATION_BATCH, config.batch.size, len(source))
    with precision.autocast():
        sums = Evaluator(task, pipeline, len(source), batch, world, device).sums(model).tolist()
    names = ("loss", *task.metrics)
    return {name: value / sums[-1] for name, value in zip(names, sums, strict=False)} | {
        "count": sums[-1]
    }


def _weights(path: Path, directory: RunDirectory) -> dict[str, torch.Tensor]:
    if path == directory.path and directory.weights.exists():
        return checkpoint.load_weights(directory.weights)
    if path == directory.path:
        newest = checkpoint.newest_valid(directory.checkpoints, print, set_aside=False)
        if newest is None:
            raise UserError(f"{path}: has no weights and no valid checkpoint yet")
        path = Path(newest)
    model: dict[str, torch.Tensor] = checkpoint.load(path)["model"]
    return model
