"""`largebatch eval`: the validation figures of a run or of one of its checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from largebatch._errors import UserError
from largebatch.data import Delivery, build_source
from largebatch.probes import DropoutPasses, evaluations, short_name
from largebatch.processes import World
from largebatch.processes.group import choose_device
from largebatch.record import RunDirectory
from largebatch.tasks import build_task
from largebatch.train import checkpoint, parse
from largebatch.train.atoms import make_atoms, share_of
from largebatch.train.config import Config
from largebatch.train.coupling import coupling_of
from largebatch.train.evaluate import Evaluator, evaluating, evaluation_batch, streams_of
from largebatch.train.further import Judged, further
from largebatch.train.precision import Precision
from largebatch.train.prepare import make_model
from largebatch.train.registries import chosen


def assess(
    path: Path, root: Path | None = None, allow_imports: bool = False, dropout: int = 0
) -> dict[str, float]:
    """Return the figures of ``evaluate.also`` and the task's, and ``count``, over validation.

    Args:
        path: a run directory (its final weights, else its newest checkpoint) or a checkpoint of
            one.
        root: where the data lie; None: where the run read them.
        allow_imports: whether code that the config names may be imported and called. Somebody's
            run directory is data otherwise: reading it runs nothing of theirs.
        dropout: so many passes with dropout on are averaged (:class:`DropoutPasses`); 0: one
            without.

    Raises:
        UserError: neither is there, the data are not, the weights are damaged or do not fit, or
            the config names code.
    """
    directory = RunDirectory(path.parent.parent if path.parent.name == "checkpoints" else path)
    if not directory.config.is_file():
        raise UserError(f"{path}: neither a run directory nor a checkpoint of one")
    config = _config(directory, root, allow_imports)
    device, world = choose_device(World()), World()
    precision = Precision(config.precision, device)
    source = build_source(config.data, "val", config.model.num_classes)
    task = build_task(config.task, source.offers())
    model = make_model(config, source, task, precision, device)
    try:
        model.load_state_dict(_weights(path, directory))
    except RuntimeError as error:
        raise UserError(f"{path}: its weights do not fit model.name: {error}") from None
    delivery = Delivery(config.run.seed, device, False, precision.dtype, config.model.channels_last)
    reader = source.reader(config.data, delivery)
    # As the run's own evaluation takes them where one rank trains: the figures agree to the bit.
    sizes = [phase.size or config.batch.size for phase in config.batch.plan] or [config.batch.size]
    micro = config.batch.micro if isinstance(config.batch.micro, int) else None
    share = share_of(max(sizes), make_atoms(config, model, task), world)
    batch = evaluation_batch(micro, share, len(source))
    streams = streams_of(source)
    coupling = coupling_of(task, world, precision, device)
    judged = (world, device, precision, streams, coupling)
    evaluator = Evaluator(task, reader, len(source), batch, *judged)
    if dropout:
        passes = DropoutPasses(task, evaluator, config.run.seed, dropout)
        with evaluating(model, device, precision):
            return {**passes(model), "count": float(len(source))}
    sums = evaluator.sums(model).tolist()
    figures = task.read(sums) | {"count": sums[-1]}
    own = [each for each in config.evaluate.also if not evaluations.imports(each["name"])]
    if not allow_imports:
        config = replace(config, evaluate=replace(config.evaluate, also=own))
    if config.evaluate.also:
        train = build_source(config.data, "train", config.model.num_classes)
        for listed, run in further(config, Judged(train, source, task, evaluator)):
            with evaluating(model, device, precision):
                found = run(model)
            figures |= {f"{short_name(listed.name)}_{key}": float(v) for key, v in found.items()}
    return figures


def _config(directory: RunDirectory, root: Path | None, allow_imports: bool) -> Config:
    overrides = [] if root is None else [f"--data.root={root.absolute()}"]
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
