"""What a person at a terminal sees before torch is loaded."""

from __future__ import annotations

import os
import subprocess
import sys

COMMAND = [sys.executable, "-m", "largebatch", "train", "--batch.sise=1"]


def test_a_terminal_says_that_torch_is_loaded_and_forgets_it() -> None:
    master, slave = os.openpty()
    done = subprocess.Popen(COMMAND, stderr=slave, stdout=subprocess.DEVNULL)
    os.close(slave)
    shown = os.read(master, 1000)
    assert shown.startswith(b"loading torch ...")
    while b"\n" not in shown:
        shown += os.read(master, 1000)
    assert done.wait(60) == 2
    os.close(master)
    assert shown.partition(b"\r\x1b[K")[2].startswith(b"largebatch: unknown key 'batch.sise'")


def test_a_log_does_not() -> None:
    done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("largebatch: unknown key 'batch.sise'")
