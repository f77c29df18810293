"""The command `largebatch eval`: validation figures of a run or of one of its checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from largebatch.probes import DropoutPasses, evaluations, short_name
from largebatch.processes import World
from largebatch.processes.group import choose_device
from largebatch.train.evaluate import evaluating
from largebatch.train.further import Judged, further
from largebatch.train.reopen import reopen


def assess(
    path: Path, root: Path | None = None, allow_imports: bool = False, dropout: int = 0
) -> dict[str, float]:
    """Return the validation figures of the task and of ``evaluate.also``, and the sample ``count``.

    Args:
        path: a run directory (its final weights, else its newest checkpoint), or a checkpoint.
        root: directory of the data; None: the run's own.
        allow_imports: see :func:`~largebatch.train.reopen.reopen`.
        dropout: number of passes with dropout on to average (:class:`DropoutPasses`); 0: one pass
            without dropout.

    Raises:
        UserError: there is no such run or no data, the weights are damaged or do not fit, or the
            config names code of a user.
    """
    world = World()
    overrides = [] if root is None else [f"--data.root={root.absolute()}"]
    run = reopen(path, overrides, allow_imports, choose_device(world))
    config, evaluator = run.config, run.evaluator(run.validation, world)
    if dropout:
        passes = DropoutPasses(run.task, evaluator, config.run.seed, dropout)
        with evaluating(run.model, run.device, run.precision):
            return {**passes(run.model), "count": float(len(run.validation))}
    sums = evaluator.sums(run.model).tolist()
    figures = run.task.read(sums) | {"count": sums[-1]}
    own = [each for each in config.evaluate.also if not evaluations.imports(each["name"])]
    if not allow_imports:
        config = replace(config, evaluate=replace(config.evaluate, also=own))
    if config.evaluate.also:
        judged = Judged(run.source("train"), run.validation, run.task, evaluator)
        for listed, call in further(config, judged):
            with evaluating(run.model, run.device, run.precision):
                found = call(run.model)
            figures |= {f"{short_name(listed.name)}_{key}": float(v) for key, v in found.items()}
    return figures
