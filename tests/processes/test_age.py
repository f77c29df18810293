"""The age of a process."""

from __future__ import annotations

import subprocess
import sys
import time


def test_a_process_knows_how_long_it_has_been_there() -> None:
    code = (
        "import time; time.sleep(.3)\nfrom largebatch.processes.age import process_seconds as s\n"
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code + "print(s())"], capture_output=True, text=True, check=True
    )
    assert 0.3 <= float(done.stdout) <= time.monotonic() - began + 0.02
