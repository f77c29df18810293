"""One rank of ``plan.py``: training steps of ResNet-18, without and with the gradients' exchange.

Rank 0 writes what the probe found and, for each line of steps, their moments: in seconds from the
beginning of a step, each of the slowest rank, medians over the steps.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import PrefixStore, TCPStore
from torchvision.models import resnet18

from largebatch._ops import torus_library
from largebatch.distributed.all_reduce import AllReduce
from largebatch.distributed.preference import Preference
from largebatch.distributed.probe import Probe
from largebatch.engine.ddp import DataParallel
from largebatch.optim import SGD
from largebatch.processes import detect

CPU = torch.device("cpu")
TIMEOUT = timedelta(seconds=600)
WARM_UP = 2
PROBES = 5
MESSAGE_BYTES, EXCHANGES, TURNS = 2**22, 5, 3
Start = Callable[[Tensor], dist.Work]


def leave(state: dict[str, Any], bucket: Any) -> torch.futures.Future[Any]:
    """Note that a bucket is complete; exchange it if there is a way to."""
    state["left"].append(time.perf_counter())
    if state["start"] is not None:
        return state["start"](bucket.buffer()).get_future()
    future: torch.futures.Future[Any] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def train(batch: int, steps: int, bucket_mb: float, start: Start | None) -> dict[str, Any]:
    """Train for ``steps`` steps; return the moments of one."""
    torch.manual_seed(0)
    model = resnet18(num_classes=10)
    engine = DataParallel(model, detect(), bucket_mb, Preference("flat"))  # the hook decides
    state: dict[str, Any] = {"start": start, "left": []}
    engine.register_comm_hook(state, leave)
    optimizer = SGD(model.parameters(), lr=1e-3, momentum=0.9)
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    rows: list[list[float]] = []
    for index in range(WARM_UP + steps):
        state["left"].clear()
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
        moments = [forward, backward, finish, time.perf_counter(), *state["left"]]
        values = torch.tensor([moment - begin for moment in moments], dtype=torch.float64)
        dist.all_reduce(values, dist.ReduceOp.MAX)  # a collective waits for the slowest rank
        if index >= WARM_UP:
            rows.append(values.tolist())
    medians = [median(column) for column in zip(*rows, strict=True)]
    return {
        **dict(zip(("forward", "backward", "finish", "step"), medians[:4], strict=True)),
        "ready": medians[4:],
        "bytes": [bucket.buffer().nbytes for bucket in engine._buckets],
        "steps": [row[3] for row in rows],
    }


def beside(start: Start, batch: int) -> dict[str, float]:
    """Return the speeds of work and of all-reduces beside each other, as shares of those alone.

    The work is forward and backward pass of ``batch`` samples; means over the ranks. ``behind`` is
    the share of its seconds alone that an all-reduce adds behind another.
    """
    model = resnet18(num_classes=10)
    messages = [torch.zeros(MESSAGE_BYTES // 4) for _ in range(EXCHANGES)]
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))

    def work() -> None:
        nn.functional.cross_entropy(model(images), labels).backward()

    def exchange() -> None:
        for message in messages:
            start(message).wait()

    def seconds(run: Callable[[], object]) -> float:
        dist.barrier()
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin

    def queue() -> None:
        for started in [start(message) for message in messages]:
            started.wait()

    exchange()
    queue()
    alternating = [(seconds(exchange), seconds(queue)) for _ in range(TURNS)]
    exchange_alone, queued = (min(times) for times in zip(*alternating, strict=True))
    behind = (queued - exchange_alone / EXCHANGES) / (exchange_alone * (1 - 1 / EXCHANGES))
    work_alone = median([seconds(work) for _ in range(WARM_UP + EXCHANGES)][WARM_UP:])
    dist.barrier()
    ended: list[float] = []
    thread = threading.Thread(target=lambda: ended.append(seconds(exchange)))
    begin, works, moment = time.perf_counter(), 0, 0.0
    thread.start()
    while not ended:
        work()
        works, moment = works + 1, time.perf_counter() - begin
    thread.join()
    speeds = torch.tensor([works * work_alone / moment, exchange_alone / ended[0], behind])
    dist.all_reduce(speeds)
    work_speed, exchange_speed, behind = (speeds / dist.get_world_size()).clamp(max=1.0).tolist()
    return {"compute": work_speed, "communication": exchange_speed, "behind": behind}


def starter(reduce: AllReduce, algorithm: str) -> Start:
    """Return what starts an all-reduce by ``algorithm``, chunks as the probe's model has it."""
    model, wire = reduce.selection.model, reduce.selection.wire
    assert model is not None, "a grid of at least 2 x 2 is probed"

    def torus(tensor: Tensor) -> dist.Work:
        chunks = model.choose(tensor.nbytes, reduce.topology, wire, ("torus",)).chunks
        return reduce.start_torus(tensor, chunks)

    return reduce.start_flat if algorithm == "flat" else torus


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--bucket-mb", type=float, required=True)
    parser.add_argument("--calibration", type=int, nargs="+", required=True, help="batches")
    parser.add_argument(
        "--lines", nargs="+", required=True, help="batch:flat, batch:torus:fp32, batch:torus:bf16"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    torus_library.load()  # from the cache proper
    # What the probe measured at another rate must not be taken for this one's.
    os.environ["XDG_CACHE_HOME"] = str(options.json.parent)
    dist.init_process_group("gloo", timeout=TIMEOUT)
    world = detect()
    store = TCPStore(
        world.address, world.port + 1, world.world_size, world.is_main, timeout=TIMEOUT
    )
    flat = dist.distributed_c10d._get_default_group()
    found: dict[str, Any] = {"probes": {}, "speeds": {}, "lines": {}}
    found["calibration"] = {
        batch: train(batch, options.steps, options.bucket_mb, None) for batch in options.calibration
    }
    reducers: dict[str, AllReduce] = {}
    for line in options.lines:
        batch, algorithm, *rest = line.split(":")
        wire: Any = rest[0] if rest else "fp32"
        if wire not in reducers:
            own = PrefixStore(wire, store)
            reducers[wire] = AllReduce(own, flat, TIMEOUT, CPU, Preference("auto", wire=wire))
            probes = [Probe(reducers[wire]).run() for _ in range(PROBES)]
            found["probes"][wire] = [
                {"model": asdict(model), "timings": [asdict(timing) for timing in timings]}
                for model, timings in probes
            ]
        start = starter(reducers[wire], algorithm)
        found["speeds"][line] = beside(start, options.calibration[-1])
        found["lines"][line] = train(int(batch), options.steps, options.bucket_mb, start)
    if world.is_main:
        options.json.write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
