"""Which process of how many this is, read from what the launcher left in the environment."""

from __future__ import annotations

import os
import re
import socket
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from largebatch._errors import UserError

FIRST_PORT, PORTS = 20000, 20000  # where ports derived from a job id lie


@dataclass(frozen=True)
class World:
    """This process among all of the run.

    Attributes:
        rank, world_size: over all hosts. local_rank, local_world_size: on this host.
        launcher: ``torchrun``, ``mpirun``, ``srun`` or ``alone``.
        address, port: where rank 0 listens for the rendezvous; unused when alone.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    launcher: str = "alone"
    address: str = "127.0.0.1"
    port: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this rank writes the run directory."""
        return self.rank == 0

    @property
    def here(self) -> str:
        """How a message names this rank to whoever reads the output of all."""
        return f"rank {self.rank} on {socket.gethostname()}"


def detect(environ: Mapping[str, str] | None = None) -> World:
    """Return this process's place: torchrun first, then Open MPI, then an srun step, else alone.

    A batch script itself carries SLURM_PROCID=0, so only a step (SLURM_STEP_ID) counts, and an
    ``sbatch`` script's own step id is not set.

    Raises:
        UserError: a launcher's variables are incomplete or are not numbers.
    """
    environment = os.environ if environ is None else environ
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return _torchrun(environment)
    if "OMPI_COMM_WORLD_RANK" in environment:
        return _mpirun(environment)
    if "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment:
        return _srun(environment)
    return World()


def _number(environment: Mapping[str, str], *names: str, default: int | None = None) -> int:
    for name in names:
        if name in environment:
            try:
                return int(environment[name])
            except ValueError:
                raise UserError(f"{name}={environment[name]!r} is not a whole number") from None
    if default is None:
        raise UserError(f"{names[0]} is not set: start the ranks with their launcher")
    return default


def _torchrun(environment: Mapping[str, str]) -> World:
    size = _number(environment, "WORLD_SIZE")
    if size > 1 and "MASTER_ADDR" not in environment:
        raise UserError("MASTER_ADDR is not set beside RANK: start the ranks with torchrun")
    return World(
        rank=_number(environment, "RANK"),
        world_size=size,
        local_rank=_number(environment, "LOCAL_RANK", default=0),
        # DeepSpeed's launcher sets torchrun's variables but for this one.
        local_world_size=_number(environment, "LOCAL_WORLD_SIZE", "LOCAL_SIZE", default=size),
        launcher="torchrun",
        address=environment.get("MASTER_ADDR", "127.0.0.1"),
        port=_number(environment, "MASTER_PORT", default=29500),
    )


def _mpirun(environment: Mapping[str, str]) -> World:
    size = _number(environment, "OMPI_COMM_WORLD_SIZE")
    local_size = _number(environment, "OMPI_COMM_WORLD_LOCAL_SIZE", default=size)
    rank = _number(environment, "OMPI_COMM_WORLD_RANK")
    job = environment.get("PMIX_NAMESPACE") or environment.get("OMPI_MCA_ess_base_jobid", "0")
    address = environment.get("MASTER_ADDR")
    port = _number(environment, "MASTER_PORT", default=_port(job))
    if address is None:
        if local_size == size:
            address = "127.0.0.1"
        else:
            address, port = _ask_mpi(rank)
    return World(
        rank=rank,
        world_size=size,
        local_rank=_number(environment, "OMPI_COMM_WORLD_LOCAL_RANK", default=0),
        local_world_size=local_size,
        launcher="mpirun",
        address=address,
        port=port,
    )


def _ask_mpi(rank: int) -> tuple[str, int]:
    """Let rank 0 tell the others its address over MPI itself: several hosts share no variable."""
    try:
        from mpi4py import MPI
    except ImportError:
        raise UserError(
            "mpirun over several hosts needs MASTER_ADDR (mpirun -x MASTER_ADDR=...) or mpi4py"
        ) from None
    here = (socket.gethostbyname(socket.gethostname()), free_port()) if rank == 0 else None
    address, port = MPI.COMM_WORLD.bcast(here, root=0)
    return str(address), int(port)


def _srun(environment: Mapping[str, str]) -> World:
    size = _number(environment, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "")
    node = _number(environment, "SLURM_NODEID", default=0)
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE")
    local_sizes = tasks_per_node(tasks) if tasks else [size]
    job = f"{environment.get('SLURM_JOB_ID', '0')}.{environment['SLURM_STEP_ID']}"
    one_host = len(local_sizes) == 1
    return World(
        rank=_number(environment, "SLURM_PROCID"),
        world_size=size,
        local_rank=_number(environment, "SLURM_LOCALID", default=0),
        local_world_size=local_sizes[node] if node < len(local_sizes) else size,
        launcher="srun",
        address=environment.get("MASTER_ADDR", "127.0.0.1" if one_host else first_host(hosts)),
        port=_number(environment, "MASTER_PORT", default=_port(job)),
    )


def tasks_per_node(text: str) -> list[int]:
    """Expand Slurm's ``2(x3),1`` into ``[2, 2, 2, 1]``."""
    sizes: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            raise UserError(f"SLURM_STEP_TASKS_PER_NODE={text!r} is not of the form 2(x3),1")
        sizes += [int(match[1])] * int(match[2] or 1)
    return sizes


def first_host(nodelist: str) -> str:
    """Return the first host of a Slurm list such as ``gpu[03-07,11],login1`` (here ``gpu03``)."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\])?", nodelist)
    if match is None:
        raise UserError(f"SLURM_STEP_NODELIST={nodelist!r} names no host: set MASTER_ADDR")
    return match[1] + (match[2] or "")


def _port(job: str) -> int:
    """Return a port that every rank of one job derives alike and other jobs hardly share."""
    return FIRST_PORT + zlib.crc32(job.encode()) % PORTS


def free_port() -> int:
    """Return a TCP port that is free on this host now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def cores() -> int:
    """Return how many processor cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
