"""`batch.micro: auto`: find the largest forward pass that fits into memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from largebatch.data import Batch
from largebatch.nn import discard_step, ghost_place
from largebatch.tasks import Task
from largebatch.train.precision import Precision

CPU_SHARE = 0.6  # of the memory now free; the allocator and the kernels' scratch take more
GPU_SHARE = 0.9


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` means that a device or the host is out of memory."""
    text = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        "DefaultCPUAllocator" in text or "not enough memory" in text
    )


def halved(micro: int | None, ghost_size: int) -> int | None:
    """Return half of ``micro`` in whole ghosts, or None if it is one ghost already."""
    if micro is None or micro <= ghost_size:
        return None
    return max(ghost_size, micro // 2 // ghost_size * ghost_size)


def memory_free(device: torch.device, local_ranks: int) -> int:
    """Return the bytes of memory that this rank may still use."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * GPU_SHARE)
    import psutil

    return int(psutil.virtual_memory().available * CPU_SHARE / local_ranks)


def largest_micro(
    model: nn.Module,
    task: Task[Any],
    precision: Precision,
    sample: Batch,
    ghost_size: int,
    share: int,
    free: int,
) -> int:
    """Return the largest multiple of ``ghost_size`` up to ``share`` whose activations fit ``free``.

    The bytes that autograd keeps for the backward pass are counted in one small forward pass and
    scaled in proportion to the samples. The model is left unchanged.

    Args:
        sample: a batch of the shape used in training.
        share: samples of this rank in a step, an upper limit.
    """
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    watching = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with watching, ghost_place(0, 1), task.undisturbed():
        precision.wrap(task.train)(model, sample)
    discard_step(model)
    activations = sum(size for pointer, size in kept.items() if pointer not in parameters)
    count = len(sample)
    per_sample = max(1.0, 2 * activations / count)  # twice: gradients of the activations as well
    fits = int(free / per_sample) // ghost_size * ghost_size
    return max(ghost_size, min(fits, -(-share // ghost_size) * ghost_size))
