"""Start this command again as several local ranks, through torch's own elastic launcher."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from largebatch._cores import usable_cores
from largebatch.processes.address import LOOPBACK
from largebatch.processes.lifetime import LAUNCHER_VARIABLE, STOPPING, StopRequest, wanted

SAVE_SECONDS = 30  # how long ranks may take to finish a step and save after a signal


def launch_local_ranks(
    nproc: int, arguments: Sequence[str], stop: StopRequest | None = None
) -> int:
    """Run ``python -m largebatch ARGUMENTS`` as ``nproc`` ranks on this host; return an exit code.

    A signal that asks to stop (`lifetime.STOPPING`) is passed on to every rank. The ranks save and
    exit with 0, and so does this process. A rank that fails ends the others, and its exit code is
    returned.

    Args:
        stop: the caller's request to stop, with the effect of SIGTERM; in the main thread only.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import rendezvous_handler_registry
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from largebatch.processes.one_host import RENDEZVOUS, OneHost

    # Ranks say themselves what went wrong; the agent's account of it would bury that line.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    rendezvous_handler_registry.register(RENDEZVOUS, OneHost)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=f"largebatch-{os.getpid()}",
        rdzv_backend=RENDEZVOUS,
        rdzv_endpoint=LOOPBACK,
        local_addr=LOOPBACK,
        max_restarts=0,
        monitor_interval=0.1,
        shutdown_timeout=SAVE_SECONDS,
        signals_to_handle=",".join(number.name for number in (*wanted(), signal.SIGQUIT)),
    )
    variables = {
        "OMP_NUM_THREADS": str(max(1, usable_cores() // nproc)),
        **os.environ,
        LAUNCHER_VARIABLE: str(os.getpid()),
        "PYTHONSAFEPATH": "1",  # a file in this folder takes no module's place in a rank
    }
    command = [sys.executable, "-m", "largebatch", *arguments]
    try:
        with _environment(variables), _heard(stop):
            elastic_launch(config, command[0])(*command[1:])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:  # it could not say so itself
            print(
                f"largebatch: rank {rank} (process {failure.pid}) was ended by"
                f" {failure.signal_name()}; the same command continues from the last checkpoint",
                file=sys.stderr,
                flush=True,
            )
        return failure.exitcode if failure.exitcode in (1, 2) else 1
    except SignalException as stop:
        return 0 if stop.sigval in STOPPING else 1
    return 0


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set the variables that ranks inherit, for the length of a block."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _heard(stop: StopRequest | None) -> Iterator[None]:
    """Let a caller's request to stop count like SIGTERM, for the length of a block."""
    if stop is None:
        yield
        return
    from torch.distributed.elastic.multiprocessing.api import SignalException

    def end(number: int, _: FrameType | None) -> None:
        raise SignalException("asked to stop", signal.Signals(number))

    signal.signal(signal.SIGTERM, end)  # until torch has its own handler there
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            if stop:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()  # a signal it has sent is met in here
