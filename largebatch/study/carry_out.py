"""Carry out a study: run its jobs as processes on this host; finished jobs are only read.

Progress is stored in the run directories and nowhere else. So the same call continues after any
interruption: of a job, of this process or of the machine.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from largebatch._errors import RunFailure, UserError
from largebatch.processes.lifetime import StopRequest, signals_as_before
from largebatch.record import BenchmarkRecord
from largebatch.study.child import Child
from largebatch.study.devices import share
from largebatch.study.job import WORKPLACE, Place
from largebatch.study.progress import Progress
from largebatch.study.study import Study
from largebatch.train import Outcome
from largebatch.train.check import check
from largebatch.train.continuation import headline

POLL_SECONDS = 0.1


def carry_out(
    study: Study, folder: Path, at_a_time: int = 1, stop: StopRequest | None = None
) -> BenchmarkRecord:
    """Train the study's jobs, one run directory per job in ``folder``, and return the conclusion.

    A job that fails does not stop the others; it is named at the end.

    Args:
        at_a_time: number of jobs at a time, on equal parts of the cores and GPUs.
        stop: a request to stop, passed on to the jobs, which save a checkpoint; None: signals are
            passed on.

    Raises:
        UserError: a job's config is refused, or differs from the run in its directory. Of jobs that
            are asked for later on, the job itself says so.
        RunFailure: jobs have failed, or the study was stopped. The same call continues the study.
    """
    if at_a_time < 1:
        raise UserError(f"--at-a-time {at_a_time}: at least 1")
    with owned(folder), signals_as_before():
        session = _Session(study, folder, at_a_time, stop or StopRequest().install())
        return study.conclude(session.run())


class Survey:
    """The jobs of a study, and which of them are done."""

    def __init__(self, study: Study, folder: Path) -> None:
        self.study, self._folder = study, folder
        self.done: dict[str, Outcome] = {}
        self.places: dict[str, Place] = {}  # of all jobs, in the order they were asked for

    def ask(self) -> list[Place]:
        """Ask the study for jobs; return those that are not done."""
        while True:
            fresh = False
            asked = [Place(job, self._folder) for job in self.study.jobs(dict(self.done))]
            names = [place.job.name for place in asked]
            for place in asked:
                name = place.job.name
                if names.count(name) > 1:
                    raise UserError(f"job {name}: the study asks for two of that name")
                if name not in self.places:
                    self.places[name] = place
                    fresh = self.look(place) or fresh
            if not fresh:  # nothing that further jobs could follow from
                return [place for place in asked if place.job.name not in self.done]

    def look(self, place: Place) -> bool:
        """Return whether a job is done; record its result if so."""
        outcome = place.outcome()
        if outcome is not None:
            self.done[place.job.name] = outcome
        return outcome is not None


def require_runnable(waiting: Iterable[Place]) -> None:
    """Refuse jobs whose settings cannot run, before any of them starts.

    Raises:
        UserError: the message names the job, the key and what is allowed.
    """
    for place in waiting:
        try:
            check(place.config)
        except UserError as error:
            raise UserError(f"job {place.job.name}: {error}") from None


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Lock a study's folder for a ``with`` block, so that two commands cannot start one job twice.

    Raises:
        UserError: another process holds the lock, or the folder cannot be written.
    """
    try:
        (folder / WORKPLACE).mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / WORKPLACE / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UserError(f"--folder {str(folder)!r}: cannot be written ({error.strerror})") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"--folder {folder}: in use by another command") from None
        yield
    finally:
        os.close(lock)


class _Session:
    def __init__(self, study: Study, folder: Path, at_a_time: int, stop: StopRequest) -> None:
        self._survey = Survey(study, folder)
        self._stop = stop
        self._running: dict[int, Child] = {}  # by slot
        self._slots = at_a_time
        self._failed: dict[str, str] = {}
        self._progress = Progress(at_a_time)
        self._said: set[str] = set()

    def run(self) -> dict[str, Outcome]:
        """Return the outcomes once all jobs are done."""
        try:
            waiting = self._ask()
            require_runnable(waiting)
            ready = len(self._survey.done)
            self._progress.say(f"{len(self._survey.places)} jobs, {ready} of them done")
            while waiting:
                self._start(waiting)
                if self._stop:
                    self._end()
                if not self._running:
                    break
                if self._wait():
                    waiting = self._ask()
        finally:
            self._progress.close()
            for child in self._running.values():
                child.kill()
        if self._failed:
            raise self._failure()
        return self._survey.done

    def _ask(self) -> list[Place]:
        """Return the jobs to do, having said what the study says of them."""
        waiting = self._survey.ask()
        for line in self._survey.study.says(dict(self._survey.done)):
            if line not in self._said:
                self._progress.say(line)
                self._said.add(line)
        return waiting

    def _failure(self) -> RunFailure:
        name, why = next(iter(self._failed.items()))
        count = f"{len(self._failed)} of {len(self._survey.places)} jobs"
        log = self._survey.places[name].log
        return RunFailure(
            f"{count} failed, first {name}, which {why} ({log} says more); the same command goes on"
        )

    def _start(self, waiting: list[Place]) -> None:
        """Fill the free slots with jobs that are neither under way nor failed."""
        under_way = {child.place.job.name for child in self._running.values()}
        rest = [p for p in waiting if p.job.name not in under_way | set(self._failed)]
        for slot in range(self._slots):
            if slot not in self._running and rest and not self._stop:
                place = rest.pop(0)
                changes = share(slot, self._slots, place.job.nproc)
                self._running[slot] = Child(place, changes)
                self._progress.say(f"{self._count()} {place.job.name}: started")

    def _wait(self) -> bool:
        """Wait until a job ends; return whether one is done, so that the study can be asked."""
        while True:
            for slot, child in list(self._running.items()):
                code = child.ended()
                if code is not None:
                    del self._running[slot]
                    return self._ended(child, code)
            if self._stop:
                self._end()
            self._progress.show(
                list(self._running.values()), len(self._survey.done), len(self._survey.places)
            )
            time.sleep(POLL_SECONDS)

    def _ended(self, child: Child, code: int) -> bool:
        place = child.place
        self._progress.ended(child.seconds)
        if self._survey.look(place):
            outcome = replace(self._survey.done[place.job.name], seconds=child.seconds)
            self._survey.done[place.job.name] = outcome
            words = outcome.lost or f"done, {headline(outcome.summary or {})}"
            self._progress.say(
                f"{self._count()} {place.job.name}: {words} in {child.seconds:.0f} s"
            )
            return True
        self._failed[place.job.name] = child.account(code)
        self._progress.say(f"{self._count()} {place.job.name}: {self._failed[place.job.name]}")
        return False

    def _end(self) -> None:
        """Pass the request to stop on, wait for the jobs, and end.

        Raises:
            RunFailure: always.
        """
        asked = ""
        while self._running:
            if self._stop.name != asked:  # also a second one, of another kind
                asked = self._stop.name or ""
                number = getattr(signal, asked, signal.SIGTERM)
                for child in self._running.values():
                    child.tell(number)
            self._running = {s: c for s, c in self._running.items() if c.ended() is None}
            time.sleep(POLL_SECONDS)
        raise RunFailure(
            f"stopped by {self._stop.name}, {len(self._survey.done)} of"
            f" {len(self._survey.places)} jobs are done; the same command goes on"
        )

    def _count(self) -> str:
        return f"[{len(self._survey.done)}/{len(self._survey.places)}]"
