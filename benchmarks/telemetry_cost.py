"""What telemetry costs a training step of about 50 ms: on against off, alternating.

    python benchmarks/telemetry_cost.py --json benchmarks/results/telemetry_cpu2.json

On: the phases of every step timed, hardware read every second (ten times as often as by default),
figures served to Prometheus and, under a launcher, heartbeats. Off: none of these. Both write the
train lines of metrics.jsonl.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from largebatch.data import DataConfig
from largebatch.distributed import World, detect
from largebatch.distributed.group import process_group
from largebatch.distributed.heartbeat import Activity
from largebatch.distributed.lifetime import StopRequest
from largebatch.models import ModelConfig
from largebatch.record import (
    BenchmarkRecord,
    MetricsWriter,
    RunDirectory,
    TensorBoardMirror,
    read_metrics,
    write_record,
)
from largebatch.schedule import BatchConfig, Duration, ScheduleConfig
from largebatch.train.build import build
from largebatch.train.config import CheckpointConfig, Config, TelemetryConfig
from largebatch.train.prometheus import PrometheusEndpoint
from largebatch.train.trainer import Trainer

TARGET_SECONDS = 0.05
FORMULA = (
    "step ms = median over a window's steps of batch / samples_per_second; CPU ms a step = user "
    "and system time of the process in a window / its steps; cost = median over pairs of "
    "(on / off) - 1"
)


class NoTimes:
    """Takes the place of StepTimes where it is off."""

    activity = Activity()
    totals: dict[str, float] = {}  # noqa: RUF012
    steps = 0

    def begin(self) -> None: ...

    def enter(self, phase: str) -> None: ...

    def take(self) -> list[Any]:
        return []

    def seconds(self, marks: list[Any]) -> dict[str, float]:
        return {}


def window(world: World, batch: int, steps: int, on: bool) -> tuple[float, float]:
    """Train for some steps; return the median step's seconds and the CPU seconds a step."""
    config = Config(
        model=ModelConfig(name="cifar_resnet20"),
        data=DataConfig(name="synthetic", image_size=32, limit=batch * steps),
        batch=BatchConfig(size=batch),
        schedule=ScheduleConfig(length=Duration.parse("1ep")),
        telemetry=TelemetryConfig(hardware_every=1.0 if on else 0.0),
        checkpoint=CheckpointConfig(every=Duration.parse("100ep")),
    )
    cpu = torch.device("cpu")
    with (
        tempfile.TemporaryDirectory() as folder,
        process_group(world, "gloo", 600.0, cpu, 120.0 if on else 0.0) as heartbeat,
    ):
        directory = RunDirectory(folder)
        directory.create()
        trainer = Trainer(config, build(config, world, cpu), directory, StopRequest(), heartbeat)
        trainer._evaluation_due = lambda start, end: False  # type: ignore[method-assign]
        if not on:
            trainer.parts.stepper.times = NoTimes()  # type: ignore[assignment]
        metrics = MetricsWriter(directory.metrics)
        writers: Any = (metrics, TensorBoardMirror(directory.tensorboard)) if world.is_main else ()
        if on and world.is_main:
            writers = (*writers, PrometheusEndpoint(0))
        busy = time.process_time()
        trainer.run(writers)
        busy = time.process_time() - busy
        for writer in writers:
            writer.close()
        lines = [line for line in read_metrics(directory.metrics) if line["split"] == "train"]
        seconds = [batch / line["samples_per_second"] for line in lines[len(lines) // 10 :]]
        return median(seconds) if seconds else 0.0, busy / steps


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=100, help="of one window")
    parser.add_argument("--batch", type=int, help="samples a step; chosen for 50 ms by default")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    world, batch = detect(), options.batch
    if batch is None:
        batch = 32
        for _ in range(3):
            batch = max(2, round(batch * TARGET_SECONDS / window(world, batch, 20, False)[0]))
    pairs = []
    for number in range(options.pairs):
        order = (True, False) if number % 2 == 0 else (False, True)
        found = {on: window(world, batch, options.steps, on) for on in order}
        pairs.append((found[True], found[False]))
    if not world.is_main:
        return
    rows = []
    for name, place in (("step ms", 0), ("CPU ms a step", 1)):
        on, off = ([pair[side][place] * 1e3 for pair in pairs] for side in (0, 1))
        ratios = sorted(a / b - 1 for a, b in zip(on, off, strict=True))
        rows.append(
            {
                "figure": name,
                "on": round(median(on), 3),
                "off": round(median(off), 3),
                "cost": f"{median(ratios):+.2%}",
                "least": f"{ratios[0]:+.2%}",
                "most": f"{ratios[-1]:+.2%}",
                "pairs": len(ratios),
            }
        )
    note = f"cifar_resnet20, batch {batch}, {options.steps} steps a window, {world.world_size} rank"
    record = BenchmarkRecord("telemetry", FORMULA, rows, notes=[note])
    print(record.table())
    if options.json is not None:
        write_record(options.json, record)


if __name__ == "__main__":
    main()
