"""One rank of ``plan_lab.py``: time training steps of ResNet-18, with or without the exchange.

Started by torchrun, in every host of the lab. Rank 0 prints one JSON object: moments of a step, in
seconds from its beginning, each of the slowest rank, medians over the steps.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from statistics import median

import torch
import torch.distributed as dist
from torch import nn
from torchvision.models import resnet18

from largebatch.distributed import detect
from largebatch.engine.ddp import DataParallel
from largebatch.optim import SGD

WARM_UP = 2
PROBE_BYTES = 16_000_000


def at_once(state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Exchange nothing; note when the bucket was complete."""
    assert isinstance(state, list)
    state.append(time.perf_counter())
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def steps(batch: int, count: int, bucket_mb: float, exchange: bool) -> dict[str, object]:
    """Train for ``count`` steps; return when its parts ended."""
    torch.manual_seed(0)
    model = resnet18(num_classes=10)
    engine = DataParallel(model, detect(), bucket_mb)
    left: list[float] = []
    if not exchange:
        engine.register_comm_hook(left, at_once)
    optimizer = SGD(model.parameters(), lr=1e-3, momentum=0.9)
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    times: list[list[float]] = []
    for index in range(WARM_UP + count):
        left.clear()
        dist.barrier()
        begin = time.perf_counter()
        engine.begin()
        loss = nn.functional.cross_entropy(model(images), labels)
        forward = time.perf_counter()
        engine.last()
        loss.backward()
        backward = time.perf_counter()
        engine.finish()
        finish = time.perf_counter()
        optimizer.step()
        end = time.perf_counter()
        moments = [forward, backward, finish, end, *left]
        values = torch.tensor([moment - begin for moment in moments], dtype=torch.float64)
        dist.all_reduce(values, dist.ReduceOp.MAX)  # a collective waits for the slowest rank
        if index >= WARM_UP:
            times.append(values.tolist())
    medians = [median(column) for column in zip(*times, strict=True)]
    return {
        **dict(zip(("forward", "backward", "finish", "step"), medians[:4], strict=True)),
        "ready": medians[4:],
        "bytes": [bucket.buffer().nbytes for bucket in engine._buckets],
        "steps": [row[3] for row in times],
    }


def processor_share() -> float:
    """Return which share of the machine's cores an all-reduce keeps busy, over all ranks."""
    message = torch.ones(PROBE_BYTES // 4)
    dist.all_reduce(message)
    dist.barrier()
    begin, busy = time.perf_counter(), time.process_time()
    dist.all_reduce(message)
    wall = time.perf_counter() - begin
    total = torch.tensor([time.process_time() - busy, wall], dtype=torch.float64)
    dist.all_reduce(total)
    seconds = float(total[1]) / dist.get_world_size()
    return float(total[0]) / (len(os.sched_getaffinity(0)) * seconds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batches", type=int, nargs="+", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--bucket-mb", type=float, required=True)
    parser.add_argument("--compute", action="store_true", help="exchange nothing")
    parser.add_argument("--backend", default="gloo")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group(options.backend)
    found: dict[str, object] = {
        "batches": {
            batch: steps(batch, options.steps, options.bucket_mb, not options.compute)
            for batch in options.batches
        }
    }
    if not options.compute:
        found["processor_share"] = processor_share()
    if dist.get_rank() == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
