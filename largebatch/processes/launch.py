"""Start this command again as several local ranks, through torch's own elastic launcher."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence

from largebatch._cores import usable_cores
from largebatch.processes.address import LOOPBACK
from largebatch.processes.lifetime import LAUNCHER_VARIABLE, STOPPING, wanted

SAVE_SECONDS = 30  # how long ranks may take to finish a step and save after a signal


def launch_local_ranks(nproc: int, arguments: Sequence[str]) -> int:
    """Run ``python -m largebatch ARGUMENTS`` as ``nproc`` ranks on this host; return an exit code.

    A signal that asks to stop (`lifetime.STOPPING`) reaches every rank by this process; they save,
    exit with 0, and so does this process. A rank that fails ends the others, and its own exit code
    is returned.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import rendezvous_handler_registry
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from largebatch.processes.one_host import RENDEZVOUS, OneHost

    # Ranks say themselves what went wrong; the agent's account of it would bury that line.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // nproc)))
    os.environ[LAUNCHER_VARIABLE] = str(os.getpid())
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
    os.environ["PYTHONSAFEPATH"] = "1"  # a file in this folder takes no module's place in a rank
    command = [sys.executable, "-m", "largebatch", *arguments]
    try:
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
