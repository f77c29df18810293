"""Divide the cores and GPUs of this host between jobs that run at the same time."""

from __future__ import annotations

import os

import torch

from largebatch._cores import usable_cores


def share(slot: int, slots: int, nproc: int) -> dict[str, str]:
    """Return the environment variables of the job in place ``slot`` of ``slots``.

    Variables that the user has set are kept. A single job gets the same as a run alone.
    """
    if slots == 1:
        return {}
    changes = {}
    if "OMP_NUM_THREADS" not in os.environ:
        changes["OMP_NUM_THREADS"] = str(max(1, usable_cores() // (slots * nproc)))
    count = torch.cuda.device_count()
    if count > 1:
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = named.split(",")[:count] if named else [str(number) for number in range(count)]
        each = max(1, count // slots)
        first = slot * each % count
        changes["CUDA_VISIBLE_DEVICES"] = ",".join(devices[first : first + each])
    return changes
