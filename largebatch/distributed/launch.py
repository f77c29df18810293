"""Start this command again as several local ranks, through torch's own elastic launcher."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence

from largebatch.distributed.environment import cores
from largebatch.distributed.lifetime import LAUNCHER_VARIABLE

SAVE_SECONDS = 30  # how long ranks may take to finish a step and save after a signal


def launch_local_ranks(nproc: int, arguments: Sequence[str]) -> int:
    """Run ``python -m largebatch ARGUMENTS`` as ``nproc`` ranks on this host; return an exit code.

    The rendezvous takes a free port of the loopback interface. A SIGTERM or SIGINT to this process
    reaches every rank; they save, exit with 0, and so does this process. A rank that fails ends
    the others, and its own exit code is returned.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Ranks say themselves what went wrong; the agent's account of it would bury that line.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // nproc)))
    os.environ[LAUNCHER_VARIABLE] = str(os.getpid())
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=f"largebatch-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.1,
        shutdown_timeout=SAVE_SECONDS,
    )
    os.environ["PYTHONSAFEPATH"] = "1"  # a file in this folder takes no module's place in a rank
    command = [sys.executable, "-m", "largebatch", *arguments]
    try:
        elastic_launch(config, command[0])(*command[1:])
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode in (1, 2) else 1
    except SignalException as stop:
        return 0 if stop.sigval in (signal.SIGTERM, signal.SIGINT) else 1
    return 0
