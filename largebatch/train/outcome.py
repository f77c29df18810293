"""What a run has come to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from largebatch._errors import RunFailure
from largebatch.record import RunDirectory
from largebatch.schedule import Duration
from largebatch.train import checkpoint
from largebatch.train.named import name_of


@dataclass(frozen=True)
class Outcome:
    """A run when its session is over.

    Attributes:
        directory: the run directory.
        finished: whether it has come to its end; if not, the same call goes on.
        samples, steps: how far it is.
        summary: the figures of a finished run, as in summary.json; None of another.
        lost: why the run cannot go on as it is: it diverged, or ran out of memory; else empty.
    """

    directory: Path
    finished: bool
    samples: int
    steps: int
    summary: dict[str, Any] | None = None
    lost: str = ""

    def checkpoint(self, at: str | Duration) -> Path:
        """Return the checkpoint that ``checkpoint.at`` has kept: a ``start`` for other runs.

        Raises:
            RunFailure: the run has kept none there.
        """
        folder = RunDirectory(self.directory).checkpoints
        path = folder / name_of(Duration.parse(at))
        if not path.is_dir():
            kept = ", ".join(checkpoint.named(folder)) or "none"
            raise RunFailure(f"{path}: is not there; checkpoint.at has kept {kept}")
        return path


def finished(path: Path, summary: dict[str, Any]) -> Outcome:
    """Return the outcome of a run that has left its summary."""
    return Outcome(path, True, int(summary["samples"]), int(summary["steps"]), summary)


def outcome_of(path: Path) -> Outcome:
    """Return what lies in a run directory, which nobody works on.

    Raises:
        UserError: its summary or newest checkpoint is damaged.
    """
    directory = RunDirectory(path)
    summary = directory.read_summary()
    if summary is not None:
        return finished(path, summary)
    name = checkpoint.latest_name(directory.checkpoints)
    lost = directory.read_lost() or ""
    if name == "none":
        return Outcome(path, False, 0, 0, lost=lost)
    position = checkpoint.position_of(directory.checkpoints / name)
    return Outcome(path, False, position["samples"], position["steps"], lost=lost)
