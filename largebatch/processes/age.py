"""How long this process has been there: what a run took to start, before any step."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil


def process_seconds() -> float:
    """Return the age of this process in seconds, imports and all."""
    if not sys.platform.startswith("linux"):
        return max(0.0, time.time() - psutil.Process().create_time())
    # There psutil counts from the time of the boot in whole seconds.
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    up = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    return up - float(fields[19]) / os.sysconf("SC_CLK_TCK")
