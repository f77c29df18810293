"""What a rank of the lab does: all-reduces timed in alternation, or repeated until one fails."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from largebatch._ops import torus_library
from largebatch.distributed.all_reduce import AllReduce
from largebatch.distributed.preference import Preference
from largebatch.processes.connect import connect
from largebatch.processes.environment import World, detect

CPU = torch.device("cpu")
KINDS = {
    "flat": Preference("flat"),
    "torus": Preference("torus"),
    "torus bf16": Preference("torus", wire="bf16"),
    "auto": Preference("auto"),
}


def measure(arguments: argparse.Namespace, world: World, store: Store) -> None:
    """Time every kind on every size, one after the other in every round; rank 0 writes JSON."""
    timeout = timedelta(seconds=arguments.timeout)
    place = (world.rank, world.world_size, timeout, CPU)
    flat = connect(PrefixStore("flat", store), *place)
    kinds = {
        kind: AllReduce(PrefixStore(kind, store), flat, timeout, CPU, KINDS[kind])
        for kind in arguments.kinds
    }
    records: list[dict[str, Any]] = []
    for size in arguments.sizes:
        tensor = torch.zeros(int(size * 1e6) // 4)
        # A second flat one shows how far the same thing is from itself.
        seconds: dict[str, list[float]] = {kind: [] for kind in (*kinds, "flat again")}
        for repetition in range(arguments.repeat * rounds_for(size) + 1):
            for kind in seconds:
                reduce = kinds[kind.removesuffix(" again")]
                flat.barrier().wait()
                start = time.perf_counter()
                if arguments.chunks and reduce.torus is not None:
                    reduce.start_torus(tensor, arguments.chunks).wait()
                else:
                    reduce.start(tensor).wait()
                spent = torch.tensor([time.perf_counter() - start], dtype=torch.float64)
                flat.allreduce([spent], dist.ReduceOp.MAX).wait()
                if repetition:  # the first opens connections and touches memory
                    seconds[kind].append(float(spent))
        for kind, times in seconds.items():
            choice = kinds[kind.removesuffix(" again")].selection.choose(tensor.nbytes)
            records.append(
                {
                    "megabytes": size,
                    "kind": kind,
                    "algorithm": choice.algorithm,
                    "chunks": arguments.chunks or choice.chunks,
                    "median_ms": 1e3 * statistics.median(times),
                    "min_ms": 1e3 * min(times),
                    "max_ms": 1e3 * max(times),
                }
            )
    if world.is_main:
        text = json.dumps({"records": records, "selection": str(kinds["auto"].selection)
                           if "auto" in kinds else ""})  # fmt: skip
        Path(arguments.json).write_text(text)
    flat.barrier().wait()


def rounds_for(megabytes: float) -> int:
    """Return by how much more often than a large message a small one is timed: it varies more."""
    return round(min(5.0, max(1.0, 8 / megabytes)))


def until_failure(arguments: argparse.Namespace, world: World, store: Store) -> None:
    """Reduce until something fails; write what was said and how long the last call took."""
    timeout = timedelta(seconds=arguments.timeout)
    flat = connect(PrefixStore("flat", store), world.rank, world.world_size, timeout, CPU)
    reduce = AllReduce(store, flat, timeout, CPU, KINDS[arguments.kinds[0]])
    tensor = torch.zeros(int(arguments.sizes[0] * 1e6) // 4)
    flat.barrier().wait()
    Path(arguments.json, f"ready-{world.rank}").touch()
    while True:
        start = time.monotonic()
        try:
            reduce.start(tensor).wait()
        except RuntimeError as error:
            found = {"seconds": time.monotonic() - start, "end": time.time(), "error": str(error)}
            Path(arguments.json, f"failed-{world.rank}").write_text(json.dumps(found))
            return


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=["measure", "until-failure"])
    parser.add_argument("--json", required=True)
    parser.add_argument("--sizes", type=float, nargs="+", default=[16.8])
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--chunks", type=int, help="of the torus; by default as it is chosen")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--timeout", type=float, default=120.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torus_library.load()
    # What the probe measured at another rate must not be taken for this one's.
    os.environ["XDG_CACHE_HOME"] = str(Path(arguments.json).parent)
    world = detect()
    store = TCPStore(
        world.address, world.port + 1, world.world_size, world.is_main,
        timeout=timedelta(seconds=600),
    )  # fmt: skip
    work = {"measure": measure, "until-failure": until_failure}[arguments.work]
    work(arguments, world, store)


if __name__ == "__main__":
    main()
