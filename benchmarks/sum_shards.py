"""`sum_shards`, the kernel of the torus: what it reaches of a copy's bandwidth.

    python benchmarks/sum_shards.py --json benchmarks/results/sum_shards.json

Eight shards of a bucket, in three forms; the peer is torch's addition of one shard after another.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from largebatch import _ops
from largebatch.processes import World
from largebatch.processes.group import choose_device
from largebatch.record import BenchmarkRecord, write_record

SHARDS = 8
FORMULA = (
    "us = median over rounds of a call's time, alternating; share = (bytes of the shards + bytes "
    "of the result) / (us x copy bandwidth of the same run); ratio = us of torch's additions, "
    "division and cast / us"
)
FORMS = (
    ("float32", torch.float32, torch.float32, False),
    ("float32, squares", torch.float32, torch.float32, True),
    ("bfloat16, squares", torch.bfloat16, torch.bfloat16, True),
    ("float32 to bfloat16", torch.float32, torch.bfloat16, False),
)


def timed(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the seconds of one call, of several in a row."""
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(repeats):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begun) / repeats


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=20, help="calls in a row")
    parser.add_argument("--megabytes", type=float, nargs="+", default=[3.0, 25.0, 200.0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = choose_device(World())
    source = torch.ones(64 * 2**20, device=device)
    target = torch.empty_like(source)
    copy = min(timed(lambda: target.copy_(source), device, 3) for _ in range(5))
    bandwidth = 2 * source.numel() * 4 / copy
    rows = []
    for megabytes in options.megabytes:
        for name, dtype, to, squares in FORMS:
            count = int(megabytes * 1e6 / dtype.itemsize)
            shards = [torch.randn(count, device=device).to(dtype) for _ in range(SHARDS)]
            out = torch.empty(count, dtype=to, device=device)

            def ours(
                shards: list[Tensor] = shards, out: Tensor = out, squares: bool = squares
            ) -> None:
                _ops.sum_shards(shards, out, divisor=SHARDS, squares=squares)

            def peer(shards: list[Tensor] = shards, out: Tensor = out) -> None:
                total = shards[0].clone()
                for shard in shards[1:]:
                    total += shard
                out.copy_(total.div_(SHARDS))

            times: dict[str, list[float]] = {"ours": [], "peer": []}
            for _ in range(options.rounds):
                times["ours"].append(timed(ours, device, options.repeats))
                times["peer"].append(timed(peer, device, options.repeats))
            found = median(times["ours"])
            moved = SHARDS * count * dtype.itemsize + count * to.itemsize
            rows.append(
                {
                    "shards": f"{SHARDS} x {megabytes:g} MB",
                    "types": name,
                    "us": round(1e6 * found, 1),
                    "share": round(moved / (found * bandwidth), 3),
                    "ratio": round(median(times["peer"]) / found, 2),
                }
            )
    record = BenchmarkRecord(
        "sum_shards", FORMULA, rows, notes=[f"copy {bandwidth / 1e9:.0f} GB/s on {device.type}"]
    )
    for row in rows:
        print(row)
    if options.json:
        write_record(options.json, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
