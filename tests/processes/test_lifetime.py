"""Which signals ask a run to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from largebatch.processes.lifetime import STOPPING, StopRequest, wanted


@pytest.fixture
def dispositions():
    before = {number: signal.getsignal(number) for number in STOPPING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU],
)
def test_each_is_taken_note_of(dispositions, number) -> None:
    stop = StopRequest().install()
    assert not stop
    os.kill(os.getpid(), number)
    stop.wait(5)
    assert stop and stop.name == number.name


def test_nohup_is_heeded(dispositions) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert signal.SIGHUP not in wanted() and signal.SIGUSR1 in wanted()
    stop = StopRequest().install()
    os.kill(os.getpid(), signal.SIGHUP)
    assert not stop


def test_nohup_itself() -> None:
    program = "from largebatch.processes.lifetime import wanted; print(*[n.name for n in wanted()])"
    done = subprocess.run(
        ["nohup", sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGXCPU"]
