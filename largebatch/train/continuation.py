"""Decide whether a command starts a run, continues it, or finds it finished."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from largebatch._errors import UserError
from largebatch.record import RunDirectory
from largebatch.train import checkpoint, parse
from largebatch.train.branch import is_parent, read_parent
from largebatch.train.config import FREE_KEYS, SETTLED_KEYS, Config, run_name
from largebatch.train.progress import say


def choose_directory(config: Config) -> Path:
    """Return the run directory: the one given, this config's unfinished run, or a new one."""
    if config.run.dir is not None:
        return Path(config.run.dir)
    new = RunDirectory.default_path(run_name(config))
    if config.checkpoint.resume != "auto":
        return new
    for path in sorted(new.parent.glob(f"{new.name[:-16]}-*"), reverse=True):
        directory = RunDirectory(path)
        try:
            if directory.finished() or not checkpoint.any_there(directory.checkpoints):
                continue
            if read_parent(directory) is not None:  # it did not begin as this one would
                continue
            saved = parse.read_config(directory.config)
            directory.acquire(wait=0)
            directory.release()
        except (UserError, PermissionError):
            continue
        if not differences(config, saved):
            return path
    return new


def what_is_there(config: Config, directory: RunDirectory) -> dict[str, Any]:
    """Decide what this command does with the run directory, which it has locked.

    Returns:
        ``summary``: the summary of a finished run, else None. ``checkpoint``: path to continue
        from, or None to start. ``branch``: whether to branch off from ``checkpoint``.

    Raises:
        UserError: the directory holds another run, or may not be continued.
    """
    resume = config.checkpoint.resume
    given = None if resume in ("auto", "never") else str(Path(resume).resolve())
    found: dict[str, Any] = {"summary": None, "checkpoint": None, "branch": given is not None}
    if directory.config.exists():
        different = differences(config, parse.read_config(directory.config))
        if different:
            key, (now, before) = next(iter(different.items()))
            raise UserError(
                f"{key}={now!r}: the run in {directory.path} was started with {before!r}; use that"
                " or another run.dir"
            )
        if resume == "never":
            raise UserError(
                f"checkpoint.resume=never: {directory.path} holds a run; choose another run.dir or"
                " resume=auto"
            )
        found["summary"] = directory.read_summary()
        if found["summary"] is not None:
            return found
        found["checkpoint"] = checkpoint.newest_valid(directory.checkpoints, say)
        parent = read_parent(directory)
        if parent and given is None and not checkpoint.any_there(directory.checkpoints):
            given = parent["checkpoint"]  # it was stopped before it saved
        # Another one than it began at stands in for what this run has lost.
        begins = bool(parent and given and is_parent(parent, Path(given)))
        found["branch"] = begins and found["checkpoint"] is None
    if found["checkpoint"] is not None:
        return found
    if given is not None:
        checkpoint.load(Path(given))
        found["checkpoint"] = given
    elif checkpoint.any_there(directory.checkpoints):
        raise UserError(
            f"{directory.checkpoints}: there are checkpoints, but none to go on from: all are"
            " damaged, or config.yaml is gone; put a good one there, name one by"
            " checkpoint.resume=PATH, or start over in another run.dir"
        )
    return found


def headline(summary: dict[str, Any]) -> str:
    """Return a finished run's headline figure in words; with a target, the samples it took."""
    if target := summary.get("target"):
        figure, value = next(iter(target.items()))
        return f"{figure} {value:.6g} after {target['samples']:,} samples"
    name = summary.get("headline") or "loss"
    value = summary.get(name)
    return f"{name} {value:.6g}" if isinstance(value, (int, float)) else "no validation"


def differences(config: Config, saved: Config) -> dict[str, tuple[Any, Any]]:
    """Return the keys that differ and affect the training trajectory, with both values."""
    now, before = parse.flat(config), parse.flat(saved)
    return {
        key: (value, before.get(key))
        for key, value in without(now, FREE_KEYS).items()
        if not (value is None and key in SETTLED_KEYS)
        and (key not in before or value != before[key])
    }


def without(values: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return ``values`` without the named keys and sections."""
    return {
        key: value
        for key, value in values.items()
        if key not in names and key.partition(".")[0] not in names
    }
