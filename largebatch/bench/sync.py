"""`largebatch bench sync`: the cost of batch statistics over ranks in messages, bytes and time.

The contenders are ghost batch norm (no message), groups of two ranks, all ranks, and the algorithm
of torch's SyncBatchNorm under torch's DistributedDataParallel. All run on gloo ranks of this
machine.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from largebatch._cores import usable_cores
from largebatch.bench.messages import BACKEND, groups_of, messages, register
from largebatch.bench.sync_peers import GatheredBatchNorm
from largebatch.engine import DataParallel
from largebatch.models import ModelConfig, build_model, image_offers
from largebatch.nn import NormConfig, convert_batch_norm, ghost_place, step_end
from largebatch.processes import World
from largebatch.processes.ending import end_group
from largebatch.record import BenchmarkRecord, json_text

RANKS = 4
FORMULA = (
    "messages, KB = collectives of one optimizer step seen by one rank, and the sum of the bytes of"
    " their results there (KB = 1000 bytes); norm = without the all-reduces of gradients; ms ="
    " median over rounds of a step's time on rank 0, contenders alternating;"
    " times ghost = median over rounds of ms / ghost's ms in that round"
)
TimedCall = Callable[[], None]


def run(rounds: int, steps: int = 3, samples: int = 32, model: str = "resnet18") -> BenchmarkRecord:
    """Measure a training step of ``model`` on four ranks.

    Args:
        rounds: alternating rounds of ``steps`` steps of every contender.
        samples: samples of each rank, 32 by 32 pixels.
    """
    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank_main, (Path(folder), rounds, steps, samples, model), nprocs=RANKS)
        rows = json.loads((Path(folder) / "rows.json").read_text())
    notes = [
        f"{model}, {samples} images of 32 x 32 a rank, {RANKS} gloo ranks with one thread each on"
        f" {usable_cores()} cores; no optimizer update",
        "gathered: the collectives of torch's SyncBatchNorm, which itself refuses CPU tensors",
    ]
    return BenchmarkRecord("sync", FORMULA, rows, notes=notes)


def contenders(model: str, samples: int, rank: int) -> dict[str, TimedCall]:
    """Return one training step for each contender, from the same weights and images."""
    images = torch.randn(samples, 3, 32, 32, generator=torch.Generator().manual_seed(rank))
    with groups_of("norm"):
        pairs, _ = dist.new_subgroups(2, backend=BACKEND)
        everyone = dist.new_group(backend=BACKEND)
    assert isinstance(everyone, dist.ProcessGroup)

    def made() -> nn.Module:
        return build_model(
            ModelConfig(name=model), NormConfig(), image_offers(10, (3, 32, 32)), seed=0
        )

    def ours(net: nn.Module, ghosts: int, first: int) -> TimedCall:
        engine = DataParallel(net, World(rank, RANKS, rank, RANKS))

        def step() -> None:
            engine.begin()
            engine.last()
            with ghost_place(first, ghosts):
                _loss(net(images)).backward()
            engine.finish()
            step_end(net, ghosts)

        return step

    def theirs(net: nn.Module) -> TimedCall:
        ddp = DistributedDataParallel(net)

        def step() -> None:
            ddp.zero_grad(set_to_none=True)
            _loss(ddp(images)).backward()

        return step

    return {
        "ghost": ours(convert_batch_norm(made(), "ghost", ghost_size=samples), RANKS, rank),
        "sync, groups of 2": ours(
            convert_batch_norm(made(), "sync", process_group=pairs), 2, rank // 2
        ),
        "sync, all 4": ours(convert_batch_norm(made(), "sync", process_group=everyone), 1, 0),
        "gathered, DDP": theirs(_gathered(made(), everyone)),
        "batch, DDP": theirs(made()),
    }


def _gathered(net: nn.Module, group: Any) -> nn.Module:
    for module in net.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, _BatchNorm):
                new = GatheredBatchNorm(child.num_features)
                new.load_state_dict(child.state_dict())
                new.group = group
                setattr(module, name, new)
    return net


def _loss(output: Tensor) -> Tensor:
    return output.square().mean()


def _rank_main(rank: int, folder: Path, rounds: int, steps: int, samples: int, model: str) -> None:
    torch.set_num_threads(1)
    register()
    dist.init_process_group(
        BACKEND, init_method=f"file://{folder / 'store'}", rank=rank, world_size=RANKS
    )
    ways = contenders(model, samples, rank)
    rows: dict[str, dict[str, Any]] = {}
    for name, step in ways.items():
        step()
        step()  # DDP arranges its buckets anew after the first
        messages.clear()
        step()
        norm = [m for m in messages if m.label == "norm" or m.kind == "broadcast"]
        rows[name] = {
            "contender": name,
            "norm messages": len(norm),
            "norm KB": round(sum(m.size for m in norm) / 1e3, 1),
            "messages": len(messages),
            "KB": round(sum(m.size for m in messages) / 1e3, 1),
        }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways) if number % 2 == 0 else list(ways)[::-1]:
            dist.barrier()
            begun = time.perf_counter()
            for _ in range(steps):
                ways[name]()
            times[name].append((time.perf_counter() - begun) / steps * 1e3)
    for name, row in rows.items():
        ratios = [a / b for a, b in zip(times[name], times["ghost"], strict=True)]
        row |= {"ms": round(median(times[name]), 1), "times ghost": round(median(ratios), 2)}
    if rank == 0:
        (folder / "rows.json").write_text(json_text(list(rows.values())))
    dist.barrier()
    end_group()
