"""The processes (ranks) of a run: identify, start and connect them, watch them and end them.

Ranks may be started by torchrun, MPI, Slurm or ``run.nproc``. This package reads the launcher's
environment, makes the process group, detects lost ranks and stops a run in good order on a signal.
"""

from largebatch.processes.environment import World, detect

__all__ = ["World", "detect"]
