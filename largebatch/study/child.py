"""A job under way: a process of its own, which never outlives the study."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping

from largebatch.processes.lifetime import LAUNCHER_VARIABLE
from largebatch.study.job import Place


class Child:
    """Starts a job's command, without a shell.

    In a session of its own: what a terminal sends to all of its processes reaches it once, through
    the study. The kernel ends it when the study's process dies, however that comes.

    Args:
        changes: variables of its environment.
    """

    def __init__(self, place: Place, changes: Mapping[str, str]) -> None:
        self.place, self.begun = place, time.monotonic()
        command = place.command()
        with open(place.log, "ab") as log:
            self._start = log.tell()
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **changes, LAUNCHER_VARIABLE: str(os.getpid())},
            )

    @property
    def seconds(self) -> float:
        """Seconds since its start."""
        return time.monotonic() - self.begun

    def ended(self) -> int | None:
        """Return its exit code, None while it works."""
        return self.process.poll()

    def tell(self, number: signal.Signals) -> None:
        """Pass a signal on."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """End it at once; its last checkpoint stands."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def last_line(self) -> str:
        """Return the last line that it has printed, empty if there is none."""
        with open(self.place.log, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._start, size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def account(self, code: int) -> str:
        """Say in words how it ended without an end of its run."""
        if code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        if code == 0:
            return f"was stopped: {self.last_line()}"
        return f"failed with exit code {code}: {self.last_line()}"
