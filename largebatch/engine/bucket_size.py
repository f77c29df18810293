"""`distributed.bucket_mb: auto`: choose the bucket size from measured links and backward times."""

from __future__ import annotations

import sys
import time

import torch
import torch.distributed as dist

from largebatch.distributed.all_reduce import AllReduce
from largebatch.distributed.bucketing import choose_bucket_mb

BUCKET_MB = 25.0  # torch's own; also until the backward pass has been timed
TIMED_STEPS = 3  # the first is slow: memory is touched and kernels are chosen in it


class BucketSize:
    """Times the backward passes of the first steps, then decides once, the same on all ranks.

    Args:
        all_reduce: the all-reduce whose probe has measured the links.
        bytes: bytes of all gradients.
    """

    def __init__(self, all_reduce: AllReduce, bytes: int) -> None:
        self._all_reduce, self._bytes = all_reduce, bytes
        self._timed: list[float] = []
        self._begun: float | None = None

    def begin(self) -> None:
        """Record that the step's last backward pass begins."""
        self._wait_for_device()
        self._begun = time.perf_counter()

    def end(self) -> None:
        """Record that the last backward pass has ended; every rank must call this."""
        self._wait_for_device()
        now = time.perf_counter()
        self._timed.append(0.0 if self._begun is None else now - self._begun)
        self._begun = None

    def decide(self) -> float | None:
        """Return the bucket size in MB once enough steps are timed, by a collective call."""
        if len(self._timed) < TIMED_STEPS:
            return None
        reduce = self._all_reduce
        seconds = torch.tensor([min(self._timed)], dtype=torch.float64, device=reduce.device)
        reduce.flat.allreduce([seconds], dist.ReduceOp.MAX).wait()
        backward = float(seconds)
        selection = reduce.selection
        megabytes = choose_bucket_mb(
            self._bytes, backward, lambda bytes: selection.choose(int(bytes)).seconds
        )
        if reduce.rank == 0:
            print(
                f"gradients: {1e-6 * self._bytes:.3g} MB, ready over {1e3 * backward:.3g} ms,"
                f" travel in messages of up to {megabytes:g} MB",
                file=sys.stderr,
                flush=True,
            )
        return megabytes

    def _wait_for_device(self) -> None:
        if self._all_reduce.device.type == "cuda":
            torch.cuda.current_stream(self._all_reduce.device).synchronize()
