"""The end of a process group: gloo's threads come to rest before the interpreter ends."""

from __future__ import annotations

import time
from pathlib import Path

import torch.distributed as dist

TASKS = Path("/proc/self/task")
GLOO_THREAD = "pt_gloo_runloop"
WAIT_SECONDS = 5.0


def end_group() -> None:
    """Destroy the default process group, and wait until gloo's threads are at rest.

    A thread of gloo says that a collective is done before it lets go of the collective's tensors,
    for which it needs the interpreter. Under load it may come to that only when the interpreter is
    ending, and the whole process then aborts ("terminate called without an active exception").
    The threads outlive the group for as long as a model or a mesh refers to it.
    """
    dist.destroy_process_group()
    until = time.monotonic() + WAIT_SECONDS
    time.sleep(0.001)  # a thread that waits for the interpreter gets it
    while _at_work() and time.monotonic() < until:
        time.sleep(0.001)


def _at_work() -> bool:
    """Return whether a thread of gloo has something to do; False where /proc is absent."""
    if not TASKS.is_dir():
        return False
    for task in TASKS.iterdir():
        try:
            name, _, rest = (task / "stat").read_text(encoding="utf-8").rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        if GLOO_THREAD in name and not rest.lstrip().startswith("S"):
            return True
    return False
