"""Open the one or two networks of a landscape: finished runs of the same architecture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from largebatch._errors import UserError
from largebatch.landscape.settings import Settings
from largebatch.train.checkpoint import weights_sha256
from largebatch.train.config import Config
from largebatch.train.reopen import Reopened, directory_of, reopen, weights_at
from largebatch.weight_space import Weights, norm_statistics, weights_of


@dataclass
class Networks:
    """The networks, on one rank.

    Attributes:
        run: the first run, whose data, task and model are used for all points.
        names: names of the runs, for display.
        weights: weights of each run, without running statistics.
        statistics: running statistics of each run.
        digests: SHA-256 of each run's weights and buffers.
    """

    run: Reopened
    names: list[str]
    weights: list[Weights]
    statistics: list[Weights]
    digests: list[str]


def open_networks(settings: Settings, device: torch.device) -> Networks:
    """Open the runs.

    Raises:
        UserError: a run is absent or not finished, see :func:`reopen`; or the runs have two models.
    """
    for path in settings.runs:
        _require_finished(path)
    run = reopen(settings.runs[0], settings.overrides, settings.allow_imports, device)
    states = [run.model.state_dict()]
    digests = [weights_sha256(states[0])]
    for path in settings.runs[1:]:
        other = reopen(path, settings.overrides, settings.allow_imports, device)
        _require_same_model(settings.runs[0], run, path, other)
        states.append(other.model.state_dict())
        digests.append(weights_sha256(states[-1]))
    moving, measured = list(weights_of(run.model)), norm_statistics(run.model)
    return Networks(
        run,
        [Path(path).resolve().name for path in settings.runs],
        [_taken(state, moving) for state in states],
        [_taken(state, measured) for state in states],
        digests,
    )


def _taken(state: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    return {name: state[name].detach().clone() for name in names}


def _require_finished(path: Path) -> None:
    directory = directory_of(path)
    if path != directory.path or directory.finished():
        return
    weights_at(path, directory)  # what has no weights at all says so first
    raise UserError(
        f"{path}: this run is not finished; go on with it by largebatch train, or name one of its"
        f" checkpoints in {directory.checkpoints}"
    )


def _require_same_model(first: Path, run: Reopened, second: Path, other: Reopened) -> None:
    def parts(config: Config) -> dict[str, object]:
        return {"model.name": config.model.name, "norm.kind": config.norm.kind}

    mine, theirs = parts(run.config), parts(other.config)
    mine |= {name: tuple(w.shape) for name, w in run.model.state_dict().items()}
    theirs |= {name: tuple(w.shape) for name, w in other.model.state_dict().items()}
    for name in {**mine, **theirs}:
        if mine.get(name) != theirs.get(name):
            raise UserError(
                f"{second}: another model than {first}: {name} is {_shown(theirs.get(name))}, there"
                f" {_shown(mine.get(name))}; there is no path between two architectures"
            )


def _shown(value: object) -> str:
    return "absent" if value is None else str(value)
