"""`largebatch bench loop`: the overhead of the trainer over a bare PyTorch loop.

The baseline is what an expert would write by hand for the same model, data, optimizer and loader:
no schedule, no metrics, no exchange. Both run in this process in turn, from the same loader code,
with the same number of threads and the same warm allocator.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from largebatch._paths import UserPath
from largebatch.data import DataConfig
from largebatch.models import ModelConfig
from largebatch.optim import OptimConfig, build_optimizer
from largebatch.processes import World
from largebatch.processes.freed_memory import keep_freed_memory
from largebatch.processes.group import choose_device
from largebatch.processes.lifetime import StopRequest
from largebatch.record import BenchmarkRecord, MetricsWriter, RunDirectory, TensorBoardMirror
from largebatch.schedule import BatchConfig, Duration, ScheduleConfig
from largebatch.train.build import Parts, build
from largebatch.train.config import Config
from largebatch.train.trainer import Trainer

FORMULA = (
    "samples/s = samples of the steps taken in a measurement / its seconds; "
    "ratio = median over rounds of (largebatch samples/s / bare samples/s), rounds alternating"
)


def run(root: str | None, seconds: float, rounds: int) -> BenchmarkRecord:
    """Measure F1 on MNIST at a batch of 128 and of 4096.

    Args:
        root: MNIST's folder; None: random images of its shape, which cost the same.
    """
    if choose_device(World()).type == "cpu":
        keep_freed_memory()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = _data(root, Path(folder))
        for batch in (128, 4096):
            config = Config(
                model=ModelConfig(name="f1"),
                data=data,
                batch=BatchConfig(size=batch),
                optim=OptimConfig(name="sgd", lr=0.01, momentum=0.9),
                schedule=ScheduleConfig(length=Duration.parse("100000ep"), curve="constant"),
            )
            ours = _trainer_steps(config, Path(folder) / str(batch))
            bare = _bare_steps(build(config, World(), choose_device(World())))
            rows.append(_compare(batch, ours, bare, seconds, rounds))
    notes = ["same model, data, loader, optimizer kernel, threads and allocator settings"]
    if root is None:
        notes.append("random images of MNIST's shape")
    return BenchmarkRecord("loop", FORMULA, rows, notes=notes)


def _data(root: str | None, folder: Path) -> DataConfig:
    if root is not None:
        return DataConfig(name="mnist", root=UserPath(root))
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.integers(0, high, shape, dtype=dtype)
        for name, high, shape, dtype in (
            ("x_train", 256, (60000, 28, 28), np.uint8),
            ("y_train", 10, 60000, np.int64),
            ("x_test", 256, (1000, 28, 28), np.uint8),
            ("y_test", 10, 1000, np.int64),
        )
    }
    path = folder / "mnist_shaped.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return DataConfig(name="arrays", root=UserPath(str(path)))


def _trainer_steps(config: Config, folder: Path) -> Iterator[int]:
    """Yield the samples of every step the trainer takes, metrics written as in any run."""
    directory = RunDirectory(folder)
    directory.create()
    parts = build(config, World(), choose_device(World()))
    trainer = Trainer(config, parts, directory, StopRequest())
    trainer.telemetry.open(
        (MetricsWriter(directory.metrics), TensorBoardMirror(directory.tensorboard))
    )
    parts.model.train()
    for share in parts.feed.shares(0):
        trainer.step(share)
        yield share.step.size


def _bare_steps(parts: Parts) -> Iterator[int]:
    """Yield the samples of every step of the loop an expert would write."""
    model = parts.model.train()
    optimizer = build_optimizer(OptimConfig(name="sgd", lr=0.01, momentum=0.9), model)
    for share in parts.feed.shares(0):
        batch: Any = next(share.passes).batch
        optimizer.zero_grad(set_to_none=True)
        loss = cross_entropy(model(batch.inputs), batch.targets)
        loss.backward()
        optimizer.step()
        yield len(batch.targets)


def _compare(
    batch: int, ours: Iterator[int], bare: Iterator[int], seconds: float, rounds: int
) -> dict[str, Any]:
    contenders = {"largebatch": ours, "bare": bare}
    steps = {name: _calibrate(iterator, seconds) for name, iterator in contenders.items()}
    count = max(steps.values())
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        order = list(contenders) if number % 2 == 0 else list(contenders)[::-1]
        for name in order:
            speeds[name].append(_speed(islice(contenders[name], count)))
    ratios = [a / b for a, b in zip(speeds["largebatch"], speeds["bare"], strict=True)]
    return {
        "model": "f1",
        "batch": batch,
        "largebatch samples/s": round(median(speeds["largebatch"])),
        "bare samples/s": round(median(speeds["bare"])),
        "ratio": round(median(ratios), 4),
        "ratio min": round(min(ratios), 4),
        "ratio max": round(max(ratios), 4),
        "steps": count,
        "rounds": rounds,
    }


def _calibrate(steps: Iterator[int], seconds: float) -> int:
    """Warm up, then return how many steps last about ``seconds``."""
    for _ in islice(steps, 5):
        pass
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < max(0.5, seconds / 4):
        next(steps)
        count += 1
    return max(2, round(count * seconds / max(0.5, seconds / 4)))


def _speed(steps: Iterator[int]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begun = time.perf_counter()
    samples = sum(steps)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return samples / (time.perf_counter() - begun)
