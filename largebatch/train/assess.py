"""`largebatch eval`: the validation figures of a run or of one of its checkpoints."""

from __future__ import annotations

from pathlib import Path

from largebatch.probes import DropoutPasses
from largebatch.processes import World
from largebatch.processes.group import choose_device
from largebatch.train.evaluate import evaluating
from largebatch.train.reopen import reopen


def assess(
    path: Path, root: Path | None = None, allow_imports: bool = False, dropout: int = 0
) -> dict[str, float]:
    """Return the task's figures and ``count`` over the validation set.

    Args:
        path: a run directory (its final weights, else its newest checkpoint) or a checkpoint of
            one.
        root: where the data lie; None: where the run read them.
        allow_imports: see :func:`~largebatch.train.reopen.reopen`.
        dropout: so many passes with dropout on are averaged (:class:`DropoutPasses`); 0: one
            without.

    Raises:
        UserError: neither is there, the data are not, the weights are damaged or do not fit, or
            the config names code.
    """
    world = World()
    overrides = [] if root is None else [f"--data.root={root.absolute()}"]
    run = reopen(path, overrides, allow_imports, choose_device(world))
    evaluator = run.evaluator(run.validation, world)
    if dropout:
        passes = DropoutPasses(run.task, evaluator, run.config.run.seed, dropout)
        with evaluating(run.model, run.device, run.precision):
            return {**passes(run.model), "count": float(len(run.validation))}
    sums = evaluator.sums(run.model).tolist()
    return run.task.read(sums) | {"count": sums[-1]}
