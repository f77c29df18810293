"""Ranks that never outlive their launcher, and signals that end a run in good order.

torch's launcher starts every rank in its own process session. So a launcher killed with SIGKILL
would leave ranks running that hold the run directory. The kernel's parent-death signal ends the
ranks however the launcher died.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PR_SET_PDEATHSIG = 1
LAUNCHER_VARIABLE = "LARGEBATCH_LAUNCHER_PID"
ASKED = (signal.SIGTERM, signal.SIGINT)
# A terminal or connection that is gone, and what batch systems send before they end a job: Slurm's
# --signal and Grid Engine's -notify the first or second of the user's, a limit of time SIGXCPU.
NOTICES = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
STOPPING = (*ASKED, *NOTICES)


def wanted() -> tuple[signal.Signals, ...]:
    """Return the signals that stop this process in good order, without those it must ignore.

    Under ``nohup`` SIGHUP is ignored, so the run continues without its terminal.
    """
    heard = (number for number in NOTICES if signal.getsignal(number) is not signal.SIG_IGN)
    return (*ASKED, *heard)


def die_with_parent(expected_parent: int | None = None) -> bool:
    """Ask the kernel to kill this process when its parent dies; return whether it will.

    Args:
        expected_parent: the launcher's process id, if known. It shows whether the launcher died
            before the request was made; then this process ends at once.
    """
    if not sys.platform.startswith("linux"):
        return False
    asked = ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0
    if expected_parent is not None and os.getppid() != expected_parent:
        os._exit(1)
    return asked


def die_with_launcher() -> None:
    """Die with the process that started this one, if that process asks for it.

    The request is the variable LARGEBATCH_LAUNCHER_PID, which is removed so that child processes do
    not inherit it.
    """
    launcher = os.environ.pop(LAUNCHER_VARIABLE, None)
    if launcher:
        die_with_parent(int(launcher))


@contextmanager
def signals_as_before() -> Iterator[None]:
    """Restore the signal handlers after a ``with`` block, for a caller that goes on."""
    if threading.current_thread() is not threading.main_thread():  # which alone may take them
        yield
        return
    before = {number: signal.getsignal(number) for number in (*STOPPING, signal.SIGQUIT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: it was not set from Python
                signal.signal(number, handler)


class StopRequest:
    """Set by a signal of `STOPPING`, or by `ask`; the trainer reads it between steps.

    A second SIGINT interrupts at once.
    """

    def __init__(self) -> None:
        self.name: str | None = None

    def __bool__(self) -> bool:
        return self.name is not None

    def install(self) -> StopRequest:
        """Install signal handlers in this process; only the main thread may do this."""
        if threading.current_thread() is threading.main_thread():
            for number in wanted():
                signal.signal(number, self._handle)
        return self

    def ask(self, name: str = "its caller") -> None:
        """Ask for a stop, from any thread; ``name`` tells in messages who asked."""
        self.name = name

    def wait(self, seconds: float) -> None:
        """Wait until a signal has come, or for ``seconds``."""
        deadline = time.monotonic() + seconds
        while not self and time.monotonic() < deadline:
            time.sleep(0.05)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.name == "SIGINT":
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
