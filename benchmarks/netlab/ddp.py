"""torch's DDP training ResNet-18 over the lab: as it comes, and with our hook choosing by `auto`.

    sudo python benchmarks/netlab/ddp.py --json benchmarks/results/netlab_ddp.json

The models start alike and see the same batches, in steps that take turns. Exposed communication is
a step's time less that of a step without exchange (``no_sync``), medians of the slowest rank.

Weights are apart by |a - b| / |a| over all of them, the first step's update by the same of the
updates. Training amplifies rounding, and by leaps where a ReLU flips, so no fixed number says how
far apart the last weights may be: in three more models default DDP's averaged gradients are
multiplied by 1 + 2^-22, 1 - 2^-22 and 1 + 2^-23 (a rounding of float32 or two). `auto` may be as
far from default DDP as the farthest of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))


UPDATE_TOLERANCE = 1e-5  # of the first step, before training amplifies anything
DISTURBED = {"up": 1 + 2.0**-22, "down": 1 - 2.0**-22, "half": 1 + 2.0**-23}


def apart(left: list[Any], right: list[Any]) -> float:
    """Return |left - right| / |left|."""
    pairs = list(zip(left, right, strict=True))
    difference = sum(float((a - b).detach().double().square().sum()) for a, b in pairs)
    return (difference / sum(float(a.detach().double().square().sum()) for a, _ in pairs)) ** 0.5


def train(options: argparse.Namespace) -> None:
    """Be one rank; rank 0 writes the row."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from torchvision.models import resnet18

    from largebatch._ops import torus_library
    from largebatch.distributed import stats, torus_hook

    torch.set_num_threads(1)
    torus_library.load()
    os.environ["XDG_CACHE_HOME"] = str(options.json.parent)  # the probe's, of this lab alone
    dist.init_process_group("gloo")
    models: dict[str, Any] = {}
    for kind in ("default", "auto", *DISTURBED):
        torch.manual_seed(0)
        models[kind] = DistributedDataParallel(resnet18(num_classes=10))
    start_weights = [p.detach().clone() for p in models["default"].parameters()]
    models["auto"].register_comm_hook(None, torus_hook(algorithm="auto"))
    optimizers = {k: torch.optim.SGD(m.parameters(), options.lr, 0.9) for k, m in models.items()}
    seconds: dict[str, list[float]] = {"default": [], "auto": [], "alone": []}
    seconds |= {kind: [] for kind in DISTURBED}
    update: dict[str, list[torch.Tensor]] = {}
    generator = torch.Generator().manual_seed(dist.get_rank())
    for step in range(options.steps + 1):
        images = torch.randn(options.batch, 3, 32, 32, generator=generator)
        labels = torch.randint(10, (options.batch,), generator=generator)
        for kind in seconds:
            model = models["default" if kind == "alone" else kind]
            dist.barrier()
            start = time.perf_counter()
            with model.no_sync() if kind == "alone" else nullcontext():
                torch.nn.functional.cross_entropy(model(images), labels).backward()
            spent = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
            if kind in DISTURBED:
                torch._foreach_mul_([p.grad for p in model.parameters()], DISTURBED[kind])
            if kind != "alone":
                optimizers[kind].step()
            if step == 0 and kind != "alone":
                pairs = zip(model.parameters(), start_weights, strict=True)
                update[kind] = [p.detach() - start for p, start in pairs]
            model.zero_grad()
            dist.all_reduce(spent, dist.ReduceOp.MAX)
            if step:  # the first probes, builds buckets and touches memory
                seconds[kind].append(float(spent))
    if dist.get_rank() == 0:
        row: dict[str, Any] = {
            f"{kind}_ms": 1e3 * statistics.median(seconds[kind])
            for kind in ("default", "auto", "alone")
        }
        weights = {kind: list(model.parameters()) for kind, model in models.items()}
        row["update_apart"] = apart(update["default"], update["auto"])
        row["weights_apart"] = apart(weights["default"], weights["auto"])
        for kind in DISTURBED:
            row[f"{kind}_weights_apart"] = apart(weights["default"], weights[kind])
        row["tolerance"] = max(row[f"{kind}_weights_apart"] for kind in DISTURBED)
        row["same_weights"] = (
            row["update_apart"] <= UPDATE_TOLERANCE and row["weights_apart"] <= row["tolerance"]
        )
        row["torus_calls"] = stats().get("torus", {}).get("calls", 0)
        options.json.write_text(json.dumps(row))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grids", nargs="+", default=["2x4", "4x2"], help="hosts x ranks")
    parser.add_argument("--rate", type=float, default=200.0, help="Mbit/s")
    parser.add_argument("--batch", type=int, default=8, help="images of 32 x 32 a rank")
    parser.add_argument("--lr", type=float, default=0.001)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if "RANK" in os.environ:
        train(options)
        return
    from lab import Lab

    from largebatch.record import BenchmarkRecord, write_record

    rows = []
    for grid in options.grids:
        hosts, ranks = map(int, grid.split("x"))
        with tempfile.TemporaryDirectory() as folder, Lab(hosts, options.rate) as lab:
            result = Path(folder, "row.json")
            arguments = [f"--json={result}", f"--batch={options.batch}", f"--steps={options.steps}"]
            arguments.append(f"--lr={options.lr}")
            processes = lab.torchrun(ranks, Path(__file__), arguments)
            outputs = [process.communicate(timeout=1800)[0] for process in processes]
            if not result.exists():
                raise RuntimeError("netlab: the ranks failed:\n" + "\n".join(outputs))
            row = {"hosts": hosts, "ranks": ranks, "mbit": options.rate, "batch": options.batch}
            row["lr"] = options.lr
            row |= json.loads(result.read_text())
        for kind in ("default", "auto"):
            row[f"{kind}_exposed_ms"] = row[f"{kind}_ms"] - row["alone_ms"]
        row["speedup"] = row["default_ms"] / row["auto_ms"]
        rows.append(row)
        print(json.dumps(row), flush=True)
        if options.json:
            formula = (
                "exposed = step - step without exchange; speedup = default / auto; medians; same"
                f" weights: first update within {UPDATE_TOLERANCE:g}, last weights no further from"
                " default's than the farthest of those whose gradients were disturbed by a rounding"
            )
            write_record(options.json, BenchmarkRecord("netlab_ddp", formula, rows))


if __name__ == "__main__":
    main()
