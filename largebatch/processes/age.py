"""How long this process has been there: what a run took to start, before any step."""

from __future__ import annotations

import os
from pathlib import Path


def process_seconds() -> float:
    """Return the age of this process in seconds, imports and all."""
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    up = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    return up - float(fields[19]) / os.sysconf("SC_CLK_TCK")
