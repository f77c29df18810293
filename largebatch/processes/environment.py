"""Read this process's rank and the number of ranks from the launcher's environment variables."""

from __future__ import annotations

import os
import re
import socket
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from largebatch._errors import UserError
from largebatch.processes.address import LOOPBACK, is_loopback
from largebatch.processes.hostlist import expand
from largebatch.processes.launchers import HALF_TOLD, LAUNCHERS, Launcher, job_of

FIRST_PORT, PORTS = 20000, 20000  # where ports derived from a job id lie
USUAL_PORT = 29500  # torch's own
SPECIAL_STEPS = 2**32 - 16  # from here on Slurm numbers batch scripts, interactive shells and such


@dataclass(frozen=True)
class World:
    """This process among all of the run.

    Attributes:
        rank, world_size: this process and the number of processes, over all hosts.
        local_rank, local_world_size: the same on this host.
        launcher: ``torchrun``, ``srun``, one of `launchers.LAUNCHERS`, or ``alone``.
        address, port: where rank 0 listens for the rendezvous; unused by a single process. The
            address is empty if only MPI can tell it.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    launcher: str = "alone"
    address: str = LOOPBACK
    port: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this rank writes the run directory."""
        return self.rank == 0

    @property
    def on_one_host(self) -> bool:
        """Whether every rank is on this host, so that the loopback interface serves them all."""
        return self.local_world_size == self.world_size or is_loopback(self.address)

    @property
    def here(self) -> str:
        """The name of this rank in messages, for readers of all ranks' output."""
        return f"rank {self.rank} on {socket.gethostname()}"


def detect(environ: Mapping[str, str] | None = None) -> World:
    """Return this process's place, from torchrun, MPI and similar launchers, or Slurm; else alone.

    A single task is not a launch (the shell of ``srun --pty bash`` is a single task). torchrun is
    an exception, because its ranks may become more. A batch script itself has SLURM_PROCID=0, so
    only steps of srun count.

    Raises:
        UserError: a launcher's variables are incomplete or not valid.
    """
    environment = os.environ if environ is None else environ
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return _torchrun(environment)
    for launcher in LAUNCHERS:
        if launcher.rank in environment and not _of_slurm(launcher, environment):
            return _mpi(launcher, environment)
    if _in_step(environment):
        return _srun(environment)
    told = next((name for name in HALF_TOLD if name in environment), "")
    if told and (told != "WORLD_SIZE" or environment[told] != "1"):
        raise UserError(
            f"{told}={environment[told]!r}: this is one process of several, but nothing says which"
            " of how many; unset it, or set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE and"
            " MASTER_ADDR for each"
        )
    return World()


def _number(
    environment: Mapping[str, str],
    *names: str,
    default: int | None = None,
    least: int = 0,
    most: int | None = None,
) -> int:
    """Return the first of ``names`` that is set, a whole number from ``least`` to ``most``."""
    for name in names:
        if name in environment:
            text = environment[name]
            number = int(text) if re.fullmatch(r"\s*\d{1,18}\s*", text, re.ASCII) else -1
            if number < least or (most is not None and number > most):
                span = f"from {least} to {most}" if most is not None else f"of {least} or more"
                raise UserError(f"{name}={text!r} is not a whole number {span}")
            return number
    if default is None:
        raise UserError(f"{names[0]} is not set: start the ranks with their launcher")
    return default


def _meeting(environment: Mapping[str, str], address: str, port: int) -> tuple[str, int]:
    """Return where rank 0 listens: as the user says, else as given."""
    given = environment.get("MASTER_ADDR", "").strip()
    port = _number(environment, "MASTER_PORT", default=port, least=1, most=65535)
    return given or address, port


def _torchrun(environment: Mapping[str, str]) -> World:
    size = _number(environment, "WORLD_SIZE", least=1)
    rank = _number(environment, "RANK", most=size - 1)
    address, port = _meeting(environment, "" if size > 1 else LOOPBACK, USUAL_PORT)
    if not address:
        raise UserError("MASTER_ADDR is not set beside RANK: start the ranks with torchrun")
    # Who sets these by hand, or Kubernetes, may leave out the local ones: one rank a host, then,
    # unless the address is every host's own. DeepSpeed's launcher calls the second LOCAL_SIZE.
    here = is_loopback(address)
    sizes = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")
    local_size = _number(environment, *sizes, default=size if here else 1, least=1, most=size)
    local_rank = _number(environment, "LOCAL_RANK", default=rank if here else 0)
    return World(rank, size, local_rank, local_size, "torchrun", address, port)


def _mpi(launcher: Launcher, environment: Mapping[str, str]) -> World:
    size = _number(environment, launcher.size, least=1)
    if size == 1:
        return World()
    rank = _number(environment, launcher.rank, most=size - 1)
    here = is_loopback(environment.get("MASTER_ADDR", "").strip())
    local_size, local_rank = (size, rank) if here else (None, None)
    if launcher.hosts in environment:
        local_size = -(-size // _number(environment, launcher.hosts, least=1))
    sizes, ranks = (*launcher.local_size, "LOCAL_WORLD_SIZE"), (*launcher.local_rank, "LOCAL_RANK")
    for names, known in ((sizes, local_size), (ranks, local_rank)):
        if known is None and not any(name in environment for name in names):
            raise UserError(
                f"{launcher.rank} is set, but nothing says which rank of its host this is, and of"
                " how many: set LOCAL_RANK and LOCAL_WORLD_SIZE, or MASTER_ADDR=127.0.0.1 where"
                " all ranks are on one host"
            )
    local_size = _number(environment, *sizes, default=local_size, least=1, most=size)
    local_rank = _number(environment, *ranks, default=local_rank)
    job = job_of(environment, launcher, local_size == size)
    port = USUAL_PORT if job is None else _port(job)
    address, port = _meeting(environment, LOOPBACK if local_size == size else "", port)
    return World(rank, size, local_rank, local_size, launcher.name, address, port)


def _in_step(environment: Mapping[str, str]) -> bool:
    """Whether srun started this process."""
    if "SLURM_STEP_ID" not in environment or "SLURM_PROCID" not in environment:
        return False
    return _number(environment, "SLURM_STEP_ID") < SPECIAL_STEPS


def _tasks(environment: Mapping[str, str]) -> int:
    return _number(environment, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS", least=1)


def _of_slurm(launcher: Launcher, environment: Mapping[str, str]) -> bool:
    """Whether the launcher's variables are those that srun itself sets for MPI.

    They tell less than Slurm's own. An mpiexec inside of a step has its own, which differ.
    """
    return (
        launcher.rank == "PMI_RANK"
        and _in_step(environment)
        and environment.get(launcher.size) == str(_tasks(environment))
        and environment[launcher.rank] == environment["SLURM_PROCID"]
    )


def _srun(environment: Mapping[str, str]) -> World:
    size = _tasks(environment)
    if size == 1:
        return World()
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "")
    hosts = expand(nodes) if nodes else []
    node = _number(environment, "SLURM_NODEID", default=0)
    name = "SLURM_STEP_TASKS_PER_NODE"
    tasks = environment.get(name) or environment.get("SLURM_TASKS_PER_NODE")
    local_sizes = tasks_per_node(tasks) if tasks else [-(-size // max(1, len(hosts)))] * len(hosts)
    if node >= max(1, len(local_sizes)):
        raise UserError(f"SLURM_NODEID={node}, but {name}={tasks!r} is of {len(local_sizes)} hosts")
    job = f"{environment.get('SLURM_JOB_ID', '0')}.{environment['SLURM_STEP_ID']}"
    first = hosts[0] if hosts and len(local_sizes) > 1 else ""
    address, port = _meeting(environment, first if len(local_sizes) > 1 else LOOPBACK, _port(job))
    if not address:
        raise UserError("SLURM_STEP_NODELIST is not set and names no host: set MASTER_ADDR")
    return World(
        rank=_number(environment, "SLURM_PROCID", most=size - 1),
        world_size=size,
        local_rank=_number(environment, "SLURM_LOCALID", default=0),
        local_world_size=min(local_sizes[node] if local_sizes else size, size),
        launcher="srun",
        address=address,
        port=port,
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


def _port(job: str) -> int:
    """Return a port that every rank of one job derives alike and other jobs hardly share."""
    return FIRST_PORT + zlib.crc32(job.encode()) % PORTS


def free_port() -> int:
    """Return a TCP port that is free on this host now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
