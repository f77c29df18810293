"""Make the process group of a run from a :class:`World`, and end it in good order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from largebatch._cores import usable_cores
from largebatch._errors import RunFailure, UserError
from largebatch.processes.address import gloo_interface, loopback_interface
from largebatch.processes.agreement import lost_peer
from largebatch.processes.ending import end_group
from largebatch.processes.environment import World
from largebatch.processes.heartbeat import RECORDED, Heartbeat
from largebatch.processes.rendezvous import JOIN_SECONDS, shared_store


def choose_device(world: World) -> torch.device:
    """Return this rank's device: its own GPU if there are GPUs, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", world.local_rank % torch.cuda.device_count())
    return torch.device("cpu")


def set_threads(world: World) -> None:
    """Divide the cores among the ranks of this host, unless OMP_NUM_THREADS is set.

    A single rank keeps torch's number of threads, unless a quota allows fewer cores.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        share = max(1, usable_cores() // world.local_world_size)
        torch.set_num_threads(
            share if world.world_size > 1 else min(share, torch.get_num_threads())
        )


def choose_interface(world: World, backend: str) -> None:
    """Let the ranks of one host listen only on its loopback interface.

    On several hosts NCCL finds its own interface. gloo gets an interface if the host's name would
    mislead it. The user's GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME are kept.
    """
    if world.on_one_host:
        interface = loopback_interface()
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if interface else ():
            os.environ.setdefault(name, str(interface))
    elif backend == "gloo" and "GLOO_SOCKET_IFNAME" not in os.environ:
        interface = gloo_interface()
        if interface is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = interface


@contextmanager
def process_group(
    world: World, backend: str, timeout: float, device: torch.device, patience: float = 0.0
) -> Iterator[Heartbeat]:
    """Join the ranks for a ``with`` block; a single process joins nothing.

    Args:
        backend: ``gloo``, ``nccl`` or ``auto`` (NCCL on GPUs, gloo otherwise).
        timeout: seconds that a collective may take before every rank fails.
        patience: seconds without a sign of life after which a rank is lost, see `Heartbeat`.

    Raises:
        RunFailure: another rank is lost, see :func:`lost_peer`.
    """
    if world.world_size == 1:
        yield Heartbeat(world)
        return
    if backend == "auto":
        backend = "nccl" if device.type == "cuda" else "gloo"
    if backend == "nccl" and device.type != "cuda":
        raise UserError("distributed.backend='nccl' needs a GPU on every rank; use gloo or auto")
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", RECORDED)
    choose_interface(world, backend)
    heartbeat = None
    try:
        store = shared_store(world, timeout)
        # Before they connect: a rank that is lost meanwhile is named as later.
        heartbeat = Heartbeat(world, patience, store)
        dist.init_process_group(
            backend,
            store=store,
            rank=world.rank,
            world_size=world.world_size,
            timeout=timedelta(seconds=min(timeout, JOIN_SECONDS)),
            device_id=device if backend == "nccl" else None,
        )
        whole = timedelta(seconds=timeout)
        dist.distributed_c10d._get_default_group()._get_backend(device)._set_default_timeout(whole)
        yield heartbeat
        dist.barrier()
    except RunFailure:
        raise
    except RuntimeError as error:
        raise lost_peer(error, world, heartbeat) from error
    finally:
        if heartbeat is not None:
            heartbeat.close()
        if dist.is_initialized():
            end_group()
