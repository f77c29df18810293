"""A running job of a study: a child process that never outlives the study."""

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

    The process has a session of its own: a terminal's signal to all processes reaches it once,
    through the study. The kernel ends the process when the study's process dies in any way.

    Args:
        changes: environment variables to set.
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
        """Seconds since the start of the process."""
        return time.monotonic() - self.begun

    def ended(self) -> int | None:
        """Return the exit code, None while the process runs."""
        return self.process.poll()

    def tell(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """Kill the process at once; its last checkpoint remains."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def last_line(self) -> str:
        """Return the last line that the process has printed; '' if there is none."""
        with open(self.place.log, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._start, size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def account(self, code: int) -> str:
        """Return in words how the process ended before its run was complete."""
        if code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        if code == 0:
            return f"was stopped: {self.last_line()}"
        return f"failed with exit code {code}: {self.last_line()}"
