"""`largebatch bench imagenet`: images/s of training, against other trainers and the limit."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch._paths import UserPath
from largebatch.bench.throughput import Contender, breakdown, plain, spread, trainer, windows
from largebatch.data import DataConfig
from largebatch.models import ModelConfig
from largebatch.nn import NormConfig
from largebatch.optim import OptimConfig
from largebatch.processes import World
from largebatch.processes.freed_memory import keep_freed_memory
from largebatch.processes.group import choose_device
from largebatch.record import BenchmarkRecord
from largebatch.schedule import BatchConfig, Duration, ScheduleConfig
from largebatch.train.config import Config, PrecisionConfig
from largebatch.train.micro import is_out_of_memory

FORMULA = """\
images/s = images of the steps in a window / its seconds; median, p5, p95 of windows, in turn
times torchvision = median over windows of images/s / torchvision's images/s in the same round
norm, convolution share = self time of such operators in one profiled step / that of all operators
limit = the phase that takes the most of a step: waiting for data, computing, exchange, update"""
REFERENCE = "torchvision"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
Change = Callable[[Config], Config]


@dataclass(frozen=True)
class Settings:
    """Settings common to all rows.

    Attributes:
        root: a folder of JPEGs to train on end to end, or None.
        seconds, rounds: seconds of a window, and number of windows per contender.
    """

    model: str = "resnet50"
    image_size: int = 224
    root: str | None = None
    workers: int = 2
    seconds: float = 8.0
    rounds: int = 7


def _norm(kind: str) -> Change:
    return lambda config: replace(config, norm=NormConfig(kind=kind, ghost_size=32))


def _optim(name: str) -> Change:
    return lambda config: replace(config, optim=OptimConfig(name=name, lr=0.01))


# Our own trainer, and what differs from its first row.
OWN: dict[str, Change] = {
    "largebatch": lambda config: config,
    "largebatch, torch's batch norm": lambda config: replace(config, norm=NormConfig()),
    "largebatch, L1 batch norm": _norm("l1"),
    "largebatch, LARS": _optim("lars"),
    "largebatch, LAMB": _optim("lamb"),
    "largebatch, contiguous": lambda config: replace(
        config, model=replace(config.model, channels_last=False)
    ),
    "largebatch, compiled": lambda config: replace(
        config, model=replace(config.model, compile=True)
    ),
}
ABSENT = {
    "largebatch, CUDA graph": "the trainer captures no graph",
    "apex": "its parts that train are for CUDA alone",
    "DeepSpeed": "its engine wraps the same model: distributed.engine=deepspeed",
}


def run(batches: Sequence[int], settings: Settings, own: Sequence[str] = ()) -> BenchmarkRecord:
    """Measure every batch in float32 and bfloat16 on one device.

    Args:
        batches: images of a step; a batch that does not fit in memory is halved until it fits.
        own: names from ``OWN``; the first two by default, on a GPU all.

    Raises:
        UserError: an unknown model, or ``root`` holds no data.
    """
    device = choose_device(World())
    if device.type == "cpu":
        keep_freed_memory()
    chosen = list(own) or list(OWN)[: None if device.type == "cuda" else 2]
    rows: list[dict[str, Any]] = []
    for batch in batches:
        for precision in PRECISIONS:
            rows += _backing_off(batch, precision, settings, chosen, device)
    for name, reason in ABSENT.items():
        rows.append({"contender": name, "images/s": f"not run: {reason}"})
    notes = [
        f"{settings.model}, {settings.image_size} x {settings.image_size}, channels last, SGD with"
        " momentum, one device; synthetic images unless a row says JPEG",
        "torchvision: its reference script's loop, which reads loss and accuracy in every step;"
        " timm: its script's loop",
        f"{settings.rounds} windows of about {settings.seconds:g} s each, contenders in turn",
    ]
    return BenchmarkRecord("imagenet", FORMULA, rows, notes=notes)


def _backing_off(
    batch: int, precision: str, settings: Settings, own: Sequence[str], device: torch.device
) -> list[dict[str, Any]]:
    while True:
        try:
            return _measure(batch, precision, settings, own, device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or batch == 1:
                raise
        batch //= 2


def _measure(
    batch: int, precision: str, settings: Settings, own: Sequence[str], device: torch.device
) -> list[dict[str, Any]]:
    config = _config(batch, precision, settings)
    contenders = [trainer(name, OWN[name](config), World(), device) for name in own]
    absent = {}
    if settings.root is not None:
        for pipeline in ("torchvision", "dali"):
            name = f"largebatch, JPEG by {pipeline}"
            data = DataConfig(
                name="imagefolder",
                root=UserPath(settings.root),
                image_size=settings.image_size,
                workers=settings.workers,
                pipeline=pipeline,
            )
            try:
                contenders.append(trainer(name, replace(config, data=data), World(), device))
            except UserError as error:
                absent[name] = str(error)
    for name, make in (("torchvision", _torchvision), ("timm", _timm)):
        try:
            contenders.append(_peer(name, make(settings.model), batch, precision, settings, device))
        except (ImportError, RuntimeError, AttributeError) as error:
            absent[name] = f"{type(error).__name__}: {error}"
    found = windows(contenders, settings.seconds, settings.rounds, World())
    reference = found.get(REFERENCE)
    rows = []
    for contender in contenders:
        row = {"contender": contender.name, "batch": batch, "precision": precision}
        row |= spread(found[contender.name])
        if reference is not None:
            ratios = [a / b for a, b in zip(found[contender.name], reference, strict=True)]
            row[f"times {REFERENCE}"] = round(median(ratios), 3)
        phases = breakdown(contender, found[contender.name])
        rows.append(row | phases | _limit(phases) | _shares(contender))
    return rows + [
        {"contender": name, "batch": batch, "precision": precision, "images/s": f"not run: {why}"}
        for name, why in absent.items()
    ]


def _config(batch: int, precision: str, settings: Settings) -> Config:
    return Config(
        model=ModelConfig(name=settings.model),
        data=DataConfig(name="synthetic", image_size=settings.image_size, limit=64 * batch),
        batch=BatchConfig(size=batch),
        norm=NormConfig(kind="ghost", ghost_size=32),
        optim=OptimConfig(name="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4),
        schedule=ScheduleConfig(length=Duration.parse("100000ep"), curve="constant"),
        precision=PrecisionConfig(compute=precision),  # type: ignore[arg-type]
    )


def _torchvision(name: str) -> nn.Module:
    model: nn.Module = getattr(importlib.import_module("torchvision.models"), name)()
    return model


def _timm(name: str) -> nn.Module:
    model: nn.Module = importlib.import_module("timm").create_model(name)
    return model


def _peer(
    name: str, model: nn.Module, batch: int, precision: str, settings: Settings, device: Any
) -> Contender:
    size = settings.image_size
    model = model.to(device).to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, size, size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (batch,), device=device)

    def source() -> tuple[Tensor, Tensor]:
        return images, labels

    read = name == REFERENCE
    return plain(name, model, source, batch, PRECISIONS[precision], metrics=read)


def _shares(contender: Contender) -> dict[str, Any]:
    """Return which share of a step's operators are norms and convolutions, profiled once."""
    # The profiler's own log would stand between the results: that it starts, that there is no GPU.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    activity = torch.profiler.ProfilerActivity
    kinds = [activity.CPU, *([activity.CUDA] if torch.cuda.is_available() else [])]
    with torch.profiler.profile(activities=kinds) as profile:
        contender.step()
    spent = {"norm": 0.0, "convolution": 0.0, "all": 0.0}
    for event in profile.key_averages():
        own = event.self_device_time_total if len(kinds) > 1 else event.self_cpu_time_total
        spent["all"] += own
        name = event.key.lower()
        if "batch_norm" in name or "ghost_norm" in name:
            spent["norm"] += own
        elif "conv" in name:
            spent["convolution"] += own
    return {
        f"{kind} share": round(spent[kind] / max(spent["all"], 1e-9), 3)
        for kind in ("norm", "convolution")
    }


def _limit(phases: dict[str, float]) -> dict[str, str]:
    if not phases:
        return {}
    return {"limit": max(phases, key=phases.__getitem__).removesuffix(" ms")}


def charts(record: BenchmarkRecord) -> list[tuple[str, str, Any]]:
    """Return (title, note, plotly figure) for the record's page."""
    from largebatch.report.record_page import bars, lines

    rows = [
        {**row, "case": f"{row['contender']}, {row['precision']}, {row['batch']}"}
        for row in record.rows
        if isinstance(row["images/s"], float)
    ]
    found = [
        ("images/s", "of each contender, precision and batch", bars(rows, "case", ("images/s",))),
        (
            "Where a step's time goes",
            "largebatch, milliseconds",
            bars(
                [row for row in rows if "compute ms" in row],
                "case",
                ("compute ms", "communication ms", "optimizer ms", "data ms"),
            ),
        ),
        (
            "Share of norms and convolutions",
            "of all operators of a step",
            bars(rows, "case", ("norm share", "convolution share")),
        ),
    ]
    if len({row["batch"] for row in rows}) > 1:
        figure = lines(rows, "batch", "images/s", ("contender", "precision"))
        found.append(("images/s against batch", "range from p5 to p95", figure))
    return found
