"""The process group of a run: made from a :class:`World`, ended in good order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from largebatch._errors import RunFailure, UserError
from largebatch.distributed.agreement import lost_peer
from largebatch.distributed.environment import World, cores
from largebatch.distributed.heartbeat import RECORDED, Heartbeat
from largebatch.distributed.rendezvous import shared_store


def choose_device(world: World) -> torch.device:
    """Return this rank's device: its own GPU where there are GPUs, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", world.local_rank % torch.cuda.device_count())
    return torch.device("cpu")


def set_threads(world: World) -> None:
    """Share the cores among the ranks of this host unless OMP_NUM_THREADS says otherwise."""
    if world.world_size > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cores() // world.local_world_size))


@contextmanager
def process_group(
    world: World, backend: str, timeout: float, device: torch.device, patience: float = 0.0
) -> Iterator[Heartbeat]:
    """Join the ranks for the length of a ``with`` block; nothing to join when alone.

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
    heartbeat = None
    try:
        dist.init_process_group(
            backend,
            store=shared_store(world, timeout),
            rank=world.rank,
            world_size=world.world_size,
            timeout=timedelta(seconds=timeout),
            device_id=device if backend == "nccl" else None,
        )
        heartbeat = Heartbeat(world, patience)
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
            dist.destroy_process_group()
