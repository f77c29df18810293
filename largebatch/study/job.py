"""One run (job) of a study, and its directory."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from largebatch._errors import UserError
from largebatch._paths import UserPath
from largebatch.record import RunDirectory, write_atomically
from largebatch.train import Outcome, parse
from largebatch.train.branch import require_start
from largebatch.train.config import Config
from largebatch.train.continuation import differences, without
from largebatch.train.outcome import outcome_of

WORKPLACE = "jobs"  # of a study's folder: the configs and outputs of its jobs

# They shape no trajectory, but what a study reads of it.
READ = ("run.target", "evaluate", "probes")


@dataclass(frozen=True)
class Job:
    """A run that a study asks for.

    Attributes:
        name: name of the run and of its folder. A study must give the same job the same name at
            every call.
        config: the run's config; the study sets ``run.dir``, ``run.nproc`` and
            ``checkpoint.resume``.
        start: a checkpoint of another job to branch off from, as `Outcome.checkpoint` returns it.
        nproc: number of local ranks.
        may_be_lost: whether losing the run (divergence or lack of memory) is a result. Otherwise it
            is a failure of the job.
    """

    name: str
    config: Config
    start: Path | None = None
    nproc: int = 1
    may_be_lost: bool = False

    @classmethod
    def of(cls, name: str, options: Sequence[str], may_be_lost: bool = False) -> Job:
        """Return a run with these options of ``largebatch train``.

        The same options are parsed once, however often a study asks for the job.
        """
        return cls(name, _parsed(tuple(options)), may_be_lost=may_be_lost)

    def check(self) -> None:
        """Refuse a name that is not valid for a folder.

        Raises:
            UserError: the message shows the name.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+=%,-]{0,199}", self.name):
            raise UserError(
                f"job {self.name!r}: a name of letters, digits and ._+=%,- that begins with one of"
                " the first two"
            )
        if self.name == WORKPLACE:
            raise UserError(f"job {self.name!r}: that folder is the study's own")


@cache
def _parsed(options: tuple[str, ...]) -> Config:
    return parse.parse(options)


class Place:
    """The directory of a job in the folder of its study."""

    def __init__(self, job: Job, folder: Path) -> None:
        job.check()
        self.job, folder = job, folder.absolute()
        self.run = RunDirectory(folder / job.name)
        self.file = folder / WORKPLACE / f"{job.name}.yaml"
        self.log = folder / WORKPLACE / f"{job.name}.log"
        resume: Literal["auto"] | UserPath = "auto"
        if job.start is not None:
            resume = UserPath(str(job.start.absolute()))
        config = job.config
        self.config = replace(
            config,
            run=replace(
                config.run,
                dir=UserPath(str(self.run.path)),
                name=config.run.name or job.name,
                nproc=job.nproc,
            ),
            checkpoint=replace(config.checkpoint, resume=resume),
        )

    def outcome(self) -> Outcome | None:
        """Return the job's result if the run in the directory is finished; else None.

        Raises:
            UserError: the directory holds another run.
        """
        if self.run.config.exists():
            wanted = parse.checked(self.config)
            self._require_same(wanted, parse.read_config(self.run.config))
            try:
                require_start(self.run, self.job.start)
            except UserError as error:
                raise UserError(f"job {self.job.name}: {error}") from None
        if self.run.finished() or (self.job.may_be_lost and self.run.read_lost()):
            return outcome_of(self.run.path)
        return None

    def _require_same(self, wanted: Config, found: Config) -> None:
        different = differences(wanted, found)
        now, before = parse.flat(wanted), parse.flat(found)
        free = set(now) - set(without(now, READ))
        different |= {key: (now[key], before[key]) for key in free if now[key] != before[key]}
        for key, (value, there) in different.items():
            raise UserError(
                f"job {self.job.name}: {key}={value!r}: the run in {self.run.path} was started"
                f" with {there!r}; ask for that, or carry the study out in another folder"
            )

    def command(self) -> list[str]:
        """Write the job's config; return the command that starts or continues the job."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.file, parse.dump(self.config))
        return [sys.executable, "-m", "largebatch", "train", f"--config={self.file}"]
