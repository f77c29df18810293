"""The outcome of a run: how far it is, its figures and its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from largebatch._errors import RunFailure, UserError
from largebatch.record import RunDirectory, is_number
from largebatch.schedule import Duration
from largebatch.train import checkpoint
from largebatch.train.named import name_of


@dataclass(frozen=True)
class Outcome:
    """The state of a run after a session.

    Attributes:
        directory: the run directory.
        finished: whether the run is complete; if not, the same call continues it.
        samples, steps: samples seen and steps taken so far.
        summary: the figures of a finished run, as in summary.json; else None.
        lost: why the run cannot continue (it diverged, or ran out of memory); else ''.
        seconds: of the process that ended the run, from its start to its end, as a study saw it;
            None: a run that was there before.
    """

    directory: Path
    finished: bool
    samples: int
    steps: int
    summary: dict[str, Any] | None = None
    lost: str = ""
    seconds: float | None = None

    def checkpoint(self, at: str | Duration) -> Path:
        """Return a checkpoint kept by ``checkpoint.at``, usable as ``start`` of other runs.

        Raises:
            RunFailure: the run has kept no checkpoint there.
        """
        folder = RunDirectory(self.directory).checkpoints
        path = folder / name_of(Duration.parse(at))
        if not path.is_dir():
            kept = ", ".join(checkpoint.named(folder)) or "none"
            raise RunFailure(f"{path}: is not there; checkpoint.at has kept {kept}")
        return path


def finished(path: Path, summary: dict[str, Any]) -> Outcome:
    """Return the outcome of a run with a summary, which is finished."""
    return Outcome(path, True, int(summary["samples"]), int(summary["steps"]), summary)


def outcome_of(path: Path) -> Outcome:
    """Return the outcome in a run directory that no process is using.

    Raises:
        UserError: its summary or newest checkpoint is damaged.
    """
    directory = RunDirectory(path)
    summary = directory.read_summary()
    if summary is not None:
        for key in ("samples", "steps"):
            if not is_number(summary.get(key)):
                raise UserError(f"{directory.summary}: damaged (no {key}); delete it to run again")
        return finished(path, summary)
    name = checkpoint.latest_name(directory.checkpoints)
    lost = directory.read_lost() or ""
    if name == "none":
        return Outcome(path, False, 0, 0, lost=lost)
    position = checkpoint.position_of(directory.checkpoints / name)
    return Outcome(path, False, position["samples"], position["steps"], lost=lost)
