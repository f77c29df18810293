"""`largebatch bench scaling`: weak and strong scaling in images/s, beside plain DDP."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from largebatch._cores import usable_cores
from largebatch._errors import UserError
from largebatch.bench.throughput import (
    Contender,
    breakdown,
    plain,
    spread,
    synchronize,
    trainer,
    windows,
)
from largebatch.data import DataConfig, Source, build_source
from largebatch.models import ModelConfig, build_model, image_offers
from largebatch.nn import NormConfig
from largebatch.optim import OptimConfig
from largebatch.processes import World
from largebatch.processes.environment import free_port
from largebatch.processes.freed_memory import keep_freed_memory
from largebatch.processes.group import choose_device, process_group, set_threads
from largebatch.record import BenchmarkRecord, json_text
from largebatch.schedule import Duration, ScheduleConfig
from largebatch.tasks import Classification, build_task
from largebatch.train.config import Config

EPOCH = 1_281_167  # ImageNet's training images
FORMULA = """\
images/s = images of the steps in a window, over all ranks / its seconds; median, p5, p95 of windows
efficiency, weak = images/s on N ranks / (N x images/s on one rank), the same batch a rank
efficiency, strong = the same with one global batch for any N
predicted images/s = global batch / (step of one rank + all-reduce of the gradients alone): nothing
  overlaps; on a CPU one rank has all the cores that N share, and its step counts N times
hours an epoch = its images / images/s / 3600; cost = hours x N x price of a device an hour"""
OURS, DDP = "largebatch", "PyTorch DDP"


@dataclass(frozen=True)
class Case:
    """One measurement on ``ranks`` ranks with ``batch`` images per rank."""

    mode: str
    ranks: int
    batch: int


@dataclass(frozen=True)
class Settings:
    """Settings common to all cases.

    Attributes:
        seconds, rounds: seconds of a window, and number of windows per contender.
        price: price of a rank's device for an hour.
        epochs: epochs to the target accuracy.
        config: a run whose steps are timed, on its own data; None: ``model`` on synthetic images.
    """

    model: str = "resnet18"
    image_size: int = 64
    seconds: float = 2.0
    rounds: int = 5
    price: float = 0.0
    epochs: float = 90.0
    config: Config | None = None


def cases(ranks: Sequence[int], batches: Sequence[int]) -> list[Case]:
    """Return the weak cases (each batch on every rank) and the strong ones (the same in all).

    Raises:
        UserError: the ranks do not begin with 1, or do not divide a batch.
    """
    if list(ranks) != sorted(set(ranks)) or ranks[0] != 1:
        raise UserError(f"--ranks {' '.join(map(str, ranks))}: from 1 up, in order")
    for batch in batches:
        for count in ranks:
            if batch < 1 or batch % count:
                raise UserError(f"--batches {batch}: {count} ranks do not divide it (strong)")
    weak = [Case("weak", count, batch) for batch in batches for count in ranks]
    strong = [Case("strong", count, batch // count) for batch in batches for count in ranks[1:]]
    return weak + strong


def run(ranks: Sequence[int], batches: Sequence[int], settings: Settings) -> BenchmarkRecord:
    """Measure every case on ranks of this machine: one process each, on its own GPU if any."""
    every = cases(ranks, batches)
    source = None if settings.config is None else _images(settings.config)
    epoch = EPOCH if source is None else len(source)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for count in ranks:
            mine = [case for case in every if case.ranks == count]
            file = Path(folder) / f"{count}.json"
            arguments = (count, free_port(), mine, settings, file)
            spawn(_rank_main, arguments, nprocs=count)
            rows += json.loads(file.read_text())
    _compare(rows, settings, epoch)
    shared = "" if torch.cuda.is_available() else f", which share {usable_cores()} cores"
    what = (
        f"{settings.model}, synthetic images of {settings.image_size} x {settings.image_size} on"
        " the device, fp32, SGD with momentum"
    )
    if settings.config is not None:
        what = (
            f"{settings.config.model.name} on {settings.config.data.name} as the run is configured"
            f" ({settings.config.optim.name}); PyTorch DDP: plain batch norm, SGD, one batch of"
            " noise on the device"
        )
    notes = [
        f"{what}; ranks of one machine{shared}; {epoch:,} images an epoch",
        f"{settings.rounds} windows of about {settings.seconds:g} s each, contenders in turn",
    ]
    return BenchmarkRecord("scaling", FORMULA, rows, notes=notes)


def _rank_main(
    rank: int, ranks: int, port: int, mine: list[Case], settings: Settings, file: Path
) -> None:
    world = World(rank, ranks, rank, ranks, "mpirun", port=port)
    device = choose_device(world)
    set_threads(world)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
    with process_group(world, "auto", 600.0, device):
        rows = [row for case in mine for row in _measure(case, settings, world, device)]
    if rank == 0:
        file.write_text(json_text(rows))


def _measure(
    case: Case, settings: Settings, world: World, device: torch.device
) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        contenders = [
            _ours(case, settings, world, device, Path(folder)),
            _ddp(case, settings, world, device),
        ]
        found = windows(contenders, settings.seconds, settings.rounds, world)
    gradients = sum(p.numel() for p in contenders[0].model.parameters() if p.requires_grad)
    alone = _all_reduce_seconds(gradients, world, device)
    return [
        {
            **asdict(case),
            "global batch": case.batch * case.ranks,
            "contender": contender.name,
            **spread(found[contender.name]),
            **({"all-reduce ms": round(1e3 * alone, 1)} if contender.name == OURS else {}),
            **breakdown(contender, found[contender.name]),
        }
        for contender in contenders
    ]


def _images(config: Config) -> Source:
    """Open a run's data.

    Raises:
        UserError: they are no labelled images, or the run changes its batch itself.
    """
    if config.batch.plan or config.batch.control != "none":
        raise UserError("bench scaling: the run changes its batch; name one of a constant batch")
    source = build_source(config.data, "train", config.model.num_classes)
    if not isinstance(build_task(config.task, source.offers()), Classification):
        raise UserError(
            f"bench scaling: task.name={config.task.name} on data.name={config.data.name}: it"
            " times classification of images"
        )
    return source


def _ours(
    case: Case, settings: Settings, world: World, device: torch.device, folder: Path
) -> Contender:
    total = case.batch * case.ranks
    size = settings.image_size
    config = settings.config or Config(
        model=ModelConfig(name=settings.model),
        data=DataConfig(name="synthetic", image_size=size, limit=64 * total),
        optim=OptimConfig(name="sgd", lr=0.01, momentum=0.9, weight_decay=1e-4),
        norm=NormConfig(kind="ghost", ghost_size=case.batch),
    )
    config = replace(
        config,
        batch=replace(config.batch, size=total),
        schedule=ScheduleConfig(length=Duration.parse("100000ep"), curve="constant"),
    )
    return trainer(OURS, config, world, device, folder)


def _ddp(case: Case, settings: Settings, world: World, device: torch.device) -> Contender:
    config, size = settings.config, settings.image_size
    named = ModelConfig(name=settings.model) if config is None else config.model
    offers = image_offers(1000, (3, size, size)) if config is None else _images(config).offers()
    model: nn.Module = build_model(named, NormConfig(), offers, seed=0)
    model = model.to(device).to(memory_format=torch.channels_last)
    if world.world_size > 1:
        model = DistributedDataParallel(model)
    images = torch.randn(case.batch, *offers["image_shape"], device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, offers["num_classes"], (case.batch,), device=device)
    total = case.batch * case.ranks
    bf16 = config is not None and config.precision.compute == "bf16"
    precision = torch.bfloat16 if bf16 else torch.float32
    return plain(DDP, model, lambda: (images, labels), total, precision, metrics=False)


def _all_reduce_seconds(numbers: int, world: World, device: torch.device) -> float:
    """Return the seconds that summing as many float32 as there are gradients takes by itself."""
    if world.world_size == 1:
        return 0.0
    tensor = torch.zeros(numbers, device=device)
    spent = []
    for _ in range(3):
        dist.barrier()
        begun = time.perf_counter()
        dist.all_reduce(tensor)
        synchronize(device)
        spent.append(time.perf_counter() - begun)
    return min(spent)


def _compare(rows: list[dict[str, Any]], settings: Settings, epoch: int) -> None:
    """Add to every row its efficiency, prediction and cost, from the rows of one rank."""
    single = {
        (row["contender"], row["global batch"]): row["images/s"]
        for row in rows
        if row["ranks"] == 1
    }
    for row in rows:
        base = row["batch"] if row["mode"] == "weak" else row["global batch"]
        alone = single[row["contender"], base]
        row["efficiency"] = round(row["images/s"] / (row["ranks"] * alone), 4)
        if row["contender"] == OURS:
            own = single.get((OURS, row["batch"]))
            if own is not None:
                crowd = 1 if torch.cuda.is_available() else row["ranks"]
                step = row["batch"] / own * crowd + row["all-reduce ms"] / 1e3
                row["predicted images/s"] = round(row["global batch"] / step, 2)
        hours = epoch / row["images/s"] / 3600
        row["hours an epoch"] = round(hours, 3)
        if settings.price:
            row["cost an epoch"] = round(hours * row["ranks"] * settings.price, 2)
            row["cost to target"] = round(settings.epochs * row["cost an epoch"], 2)


def charts(record: BenchmarkRecord) -> list[tuple[str, str, Any]]:
    """Return (title, note, plotly figure) for the record's page."""
    from largebatch.report.record_page import bars, lines

    rows = record.rows
    ours = [row for row in rows if row["contender"] == OURS]
    weak = [row for row in rows if row["mode"] == "weak"]
    strong = [row for row in rows if row["mode"] == "strong" or row["ranks"] == 1]
    named = [{**row, "case": f"{row['mode']}, {row['ranks']} x {row['batch']}"} for row in ours]
    found = [
        ("images/s against ranks", "weak scaling: the batch a rank stays; range from p5 to p95",
         lines(weak, "ranks", "images/s", ("contender", "batch"))),
        ("Efficiency against ranks", "weak scaling",
         lines(weak, "ranks", "efficiency", ("contender", "batch"), percent=True)),
        ("images/s against ranks, one global batch", "strong scaling",
         lines(strong, "ranks", "images/s", ("contender", "global batch"))),
        ("images/s against global batch", "weak scaling, a line for each number of ranks",
         lines(weak, "global batch", "images/s", ("contender", "ranks"))),
        ("Where a step's time goes", "largebatch, milliseconds of rank 0",
         bars(named, "case", ("compute ms", "communication ms", "optimizer ms", "data ms"))),
        ("Predicted and measured", "images/s of largebatch",
         bars([row for row in named if "predicted images/s" in row], "case",
              ("images/s", "predicted images/s"), stacked=False)),
        ("Hours an epoch", "at the measured images/s",
         lines(weak, "ranks", "hours an epoch", ("contender", "batch"))),
    ]  # fmt: skip
    if any("cost an epoch" in row for row in rows):
        found.append(
            ("Cost an epoch", "hours x ranks x price of a device an hour",
             lines(weak, "ranks", "cost an epoch", ("contender", "batch")))
        )  # fmt: skip
    return found
