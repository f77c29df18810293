"""Branches: runs that begin at a checkpoint of another run.

A branch takes over the model, the optimizer's state, the averages, the loss scaler and the state of
instruments. It continues at the checkpoint's sample, since schedules are functions of samples. An
average whose half-life differs from the parent's begins anew. Times and records are the branch's
own, and optimizer settings come from its own config. ``parent.json`` in its directory records the
origin.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from largebatch._errors import UserError
from largebatch.optim.state import settings_of
from largebatch.probes import WeightAverage
from largebatch.record import RunDirectory, json_text, parse_json, read_file, write_atomically
from largebatch.train import parse
from largebatch.train.config import Config, run_name
from largebatch.train.position import Position
from largebatch.train.trainer import Trainer

OWN = ("evaluated", "seconds", "last", "reached", "nonfinite")  # of a position: not inherited


def branch(trainer: Trainer, state: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """Start a run from another run's checkpoint; return the content of ``parent.json``.

    Raises:
        UserError: the checkpoint does not fit, or holds a value that is not finite.
    """
    parent = _config_of(checkpoint)
    name = trainer.config.optim.name
    if parent is not None and parent.optim.name != name:
        raise UserError(
            f"optim.name={name}: the checkpoint holds the state of {parent.optim.name}; keep that,"
            " or take its weights alone by model.init_from"
        )
    fresh = vars(Position())
    position = state.get("position")
    if isinstance(position, dict):  # what it is otherwise is refused below
        own = {key: fresh[key] for key in OWN}
        state = {**state, "position": {**position, **own}}
    average = trainer.panel.find(WeightAverage)
    half_life = trainer.config.ema.half_life
    if average is not None and (parent is None or parent.ema.half_life != half_life):
        state = {**state, average.name: _begun(average, state.get("model"))}
    optimizer = trainer.parts.engine.optimizer
    if not trainer.parts.engine.flattens and isinstance(state.get("optimizer"), dict):
        state = {**state, "optimizer": _regrouped(state["optimizer"], optimizer)}
    settings = [settings_of(optimizer, group) for group in optimizer.param_groups]
    trainer.resume(state)
    for group, values in zip(optimizer.param_groups, settings, strict=True):
        group.update(values)
    return {
        "checkpoint": str(checkpoint),
        "run": parent and run_name(parent),
        "samples": trainer.position.samples,
        "steps": trainer.position.steps,
    }


def read_parent(directory: RunDirectory) -> dict[str, Any] | None:
    """Return the origin of the run in a directory; None for a run that is no branch.

    Raises:
        UserError: the file is damaged.
    """
    path = _file(directory)
    try:
        parent = parse_json(read_file(path))
        if not isinstance(parent["checkpoint"], str) or not isinstance(parent["samples"], int):
            raise ValueError("its checkpoint or samples")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: damaged ({error}); start over in another run.dir") from None
    return dict(parent)


def write_parent(directory: RunDirectory, parent: dict[str, Any] | None) -> None:
    """Write the origin of a branch, before the config is written, which marks the run as begun."""
    if parent is None:
        _file(directory).unlink(missing_ok=True)
    else:
        write_atomically(_file(directory), json_text(parent, indented=True) + "\n")


def require_start(directory: RunDirectory, start: Path | None) -> None:
    """Refuse to continue a run that began elsewhere; a run that has not begun may begin anywhere.

    Raises:
        UserError: the message names both origins.
    """
    if not directory.config.exists():
        return
    parent = read_parent(directory)
    if (parent is None) != (start is None) or (
        parent is not None and start is not None and not is_parent(parent, start)
    ):
        began = "at its first sample" if parent is None else f"at {parent['checkpoint']}"
        raise UserError(
            f"start={str(start) if start else None}: the run in {directory.path} began {began};"
            " use that or another run.dir"
        )


def is_parent(parent: dict[str, Any], start: Path) -> bool:
    """Return whether a run began at ``start``, even if the folder of both runs was moved since."""
    return Path(parent["checkpoint"]).parts[-3:] == start.resolve().parts[-3:]


def _begun(average: WeightAverage, weights: Any) -> Any:
    """Return an average that begins at these weights."""
    if not isinstance(weights, dict):  # said where they are loaded
        return None
    return {name: weights[name] for name in average.tensors if name in weights}


def _regrouped(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimizer's state in the groups of this run: a decay of its own makes others."""
    own = optimizer.param_groups
    try:
        place = {
            name: (number, group)
            for group in saved["param_groups"]
            for name, number in zip(group["param_names"], group["params"], strict=True)
        }
        groups = [
            {
                **place[group["param_names"][0]][1],
                **settings_of(optimizer, group),
                "params": [place[name][0] for name in group["param_names"]],
                "param_names": group["param_names"],
            }
            for group in own
        ]
    except (KeyError, TypeError, ValueError, IndexError):  # said where it is loaded
        return saved
    return {**saved, "param_groups": groups}


def _config_of(checkpoint: Path) -> Config | None:
    """Return the config of the run that a checkpoint lies in; None where none can be read."""
    file = RunDirectory(checkpoint.parent.parent).config
    if checkpoint.parent.name != "checkpoints" or not file.exists():
        return None
    try:
        return parse.read_config(file)
    except UserError:  # of another version: its checkpoint counts
        return None


def _file(directory: RunDirectory) -> Path:
    return directory.path / "parent.json"
