"""Wait until gloo's threads are at rest, so that no interpreter ends under one of them.

A thread of gloo reports a collective as done before it runs the callbacks and releases the tensors,
and needs the interpreter for both. A thread that asks for an interpreter which is ending aborts the
whole process ("terminate called without an active exception"). Under load this is no rare case.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch.distributed as dist

TASKS = Path("/proc/self/task")
GLOO_THREAD = "pt_gloo_runloop"
WAIT_SECONDS = 5.0


def end_group() -> None:
    """Destroy the default process group, and wait until gloo's threads are at rest.

    The threads outlive the group as long as a model or a mesh refers to the group.
    """
    dist.destroy_process_group()
    let_gloo_rest()


def let_gloo_rest() -> None:
    """Wait, for ``WAIT_SECONDS`` at most, until no thread of gloo has something to do.

    A thread that waits for another rank counts as one at rest: wait for its collective before.
    """
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
