"""Environment variables by which MPI's and similar launchers tell each process its rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Launcher:
    """The environment variables of one launcher.

    Attributes:
        name: name of the launcher in messages.
        rank, size: the variables with the rank and with the number of ranks.
        local_rank, local_size: variables that may hold the same for this host; the first that is
            set counts.
        hosts: the variable with the number of hosts, if no variable gives the ranks per host.
    """

    name: str
    rank: str
    size: str
    local_rank: tuple[str, ...]
    local_size: tuple[str, ...] = ()
    hosts: str = ""


def _family(name: str, prefix: str) -> Launcher:
    local_rank, local_size = f"{prefix}LOCAL_RANK", f"{prefix}LOCAL_SIZE"
    return Launcher(name, f"{prefix}RANK", f"{prefix}SIZE", (local_rank,), (local_size,))


# The more particular first: Open MPI under jsrun, and every task of flux, have PMI's variables too.
LAUNCHERS = (
    _family("mpirun", "OMPI_COMM_WORLD_"),  # Open MPI
    _family("mpirun", "MV2_COMM_WORLD_"),  # MVAPICH 2
    _family("mpirun", "MVP_COMM_WORLD_"),  # MVAPICH 3
    _family("jsrun", "JSM_NAMESPACE_"),  # LSF
    _family("horovodrun", "HOROVOD_"),
    Launcher(
        "flux",
        "FLUX_TASK_RANK",
        "FLUX_JOB_SIZE",
        ("FLUX_TASK_LOCAL_ID",),
        hosts="FLUX_JOB_NNODES",
    ),
    Launcher(  # MPICH, Intel MPI, and Cray's under PALS
        "mpiexec",
        "PMI_RANK",
        "PMI_SIZE",
        ("MPI_LOCALRANKID", "PMI_LOCAL_RANK", "PALS_LOCAL_RANKID"),
        ("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"),
    ),
)

# By each of these a process is one of several, but they do not say which of how many.
HALF_TOLD = ("PMIX_RANK", "PALS_RANKID", "ALPS_APP_PE", "RANK", "WORLD_SIZE")

JOBS = (
    "PMIX_NAMESPACE",
    "OMPI_MCA_ess_base_jobid",
    "MPIRUN_ID",
    "PMI_JOBID",
    "PALS_APID",
    "FLUX_JOB_ID",
    "JSM_NAMESPACE_ID",
    "HOROVOD_GLOO_RENDEZVOUS_PORT",
    "LSB_JOBID",
    "PBS_JOBID",
    "SLURM_JOB_ID",
)


def job_of(environment: Mapping[str, str], launcher: Launcher, on_one_host: bool) -> str | None:
    """Return an identity of this job, the same for all its processes, if there is one."""
    named = next((f"{name} {environment[name]}" for name in JOBS if name in environment), None)
    return named or (f"process {_process_of(launcher)}" if on_one_host else None)


def _process_of(launcher: Launcher) -> int:
    """Return the process that started the ranks: the nearest above that is none itself.

    Between them may be scripts, which have a rank's variables, and MPICH gives each its session.
    """
    import psutil

    for process in psutil.Process().parents():
        try:
            if launcher.rank not in process.environ():
                return process.pid
        except (psutil.Error, OSError):  # another user's
            return process.pid
    return 0
