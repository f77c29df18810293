"""What each probe costs a run at the distance it has by default: at most 2% is the goal.

    python benchmarks/probe_cost.py --json benchmarks/results/probe_cost_cpu2.json

Two trainers of one process take their steps in turn, one with the probe and one without. Since
default distances are up to thousands of steps, the probe measures every few steps here, and what a
measurement takes is divided by the default distance.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.progress import track

from largebatch.data import DataConfig
from largebatch.models import ModelConfig
from largebatch.nn import NormConfig
from largebatch.probes import Instrument, probes
from largebatch.processes import World
from largebatch.processes.lifetime import StopRequest
from largebatch.record import BenchmarkRecord, RunDirectory, write_record
from largebatch.schedule import BatchConfig, Duration, Every, ScheduleConfig
from largebatch.train.build import build
from largebatch.train.config import CheckpointConfig, Config, EvaluateConfig, TelemetryConfig
from largebatch.train.progress import Progress
from largebatch.train.trainer import Trainer

BETWEEN = 4  # steps from a measurement to the next
FORMULA = (
    "CPU ms of a step: user and system time; measurement = median over measured steps of (step with"
    " the probe - median of its other steps), in steps = / median step without the probe; cost = "
    "measurement in steps / default distance; the first, which may be longer, is left out; other steps"
    " = median over pairs of (step with the probe that measures nothing / step without) - 1, whose"
    " error is about 1 / sqrt(pairs) of what steps differ by; goal: 2%"
)


class Pace:
    """A trainer that takes one step at a time.

    Attributes:
        instrument: the probe, None without one. distance: its default one, in steps.
    """

    def __init__(self, batch: int, name: str | None, folder: str) -> None:
        never = Duration.parse("1000ep")
        config = Config(
            model=ModelConfig(name="cifar_resnet20"),
            data=DataConfig(name="synthetic", image_size=32, limit=batch * 10000),
            batch=BatchConfig(size=batch),
            norm=NormConfig(kind="ghost", ghost_size=max(2, batch // 4)),
            schedule=ScheduleConfig(length=never),
            telemetry=TelemetryConfig(every=never, layers=never, hardware_every=0.0),
            evaluate=EvaluateConfig(every=never),
            checkpoint=CheckpointConfig(every=never),
            probes=[{"name": name}] if name else [],
        )
        directory = RunDirectory(folder)
        directory.create()
        parts = build(config, World(), torch.device("cpu"))
        self._trainer = Trainer(config, parts, directory, StopRequest())
        clock, total = parts.schedule.clock, parts.schedule.total_samples
        self._trainer.telemetry.open((), Progress(parts.task, total, 0, shown=False))
        self._trainer.panel.begin(0, 0, lambda text: None)
        self._shares = iter(parts.feed.shares(0))
        found = [each for each in self._trainer.panel if each.name == name]
        self.instrument: Instrument | None = found[0] if found else None
        self.distance = 0
        if self.instrument is not None:
            plan = parts.schedule.plan
            steps: Iterator[int] = iter(range(1, 10**6))
            step = plan.step_at(0)
            self.distance = next(n for n in steps if self.instrument.due(step, n))
            self.instrument.every = Every(Duration.parse(f"{BETWEEN}st"), clock)

    def step(self) -> float:
        """Take a step; return its CPU seconds."""
        share = next(self._shares)
        begun = time.process_time()
        self._trainer.step(share)
        return time.process_time() - begun


def cost(name: str, batch: int, measurements: int) -> dict[str, Any]:
    """Return the row of a probe."""
    with TemporaryDirectory() as one, TemporaryDirectory() as other:
        watched, plain = Pace(batch, name, one), Pace(batch, None, other)
        measured: list[float] = []
        between: list[float] = []
        without: list[float] = []
        ratios: list[float] = []
        for number in range(1, BETWEEN * (measurements + 1) + 1):
            pair = [watched.step(), plain.step()] if number % 2 else [plain.step(), watched.step()]
            on, off = pair if number % 2 else reversed(pair)
            if number > 1:  # it warms up
                without.append(off)
                (measured if number % BETWEEN == 0 else between).append(on)
                ratios += [on / off] if number % BETWEEN else []
    step, other_step = median(without), median(between)
    took = sorted((each - other_step) / step for each in measured[1:])
    return {
        "probe": name,
        "step ms": round(1e3 * step, 2),
        "measurement, steps": round(median(took), 2),
        "least": round(took[0], 2),
        "most": round(took[-1], 2),
        "the first": round((measured[0] - other_step) / step, 2),
        "every": watched.distance,
        "cost": f"{median(took) / watched.distance:.2%}",
        "other steps": f"{median(ratios) - 1:+.2%}",
    }


def main() -> None:
    """Measure and write the record."""
    usual = [entry.name for entry in probes if entry.name != "rank_cosine"]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--probes", nargs="+", default=usual, choices=usual)
    parser.add_argument("--batch", type=int, default=32, help="samples a step")
    parser.add_argument("--measurements", type=int, default=9, help="of each probe")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [cost(name, options.batch, options.measurements) for name in track(options.probes)]
    note = (
        f"cifar_resnet20, batch {options.batch} in ghosts of {max(2, options.batch // 4)}, one rank"
        f" and thread, {options.measurements} measurements, {BETWEEN} steps apart; rank_cosine has"
        " nothing to measure of one rank"
    )
    record = BenchmarkRecord("probe-cost", FORMULA, rows, notes=[note])
    print(record.table())
    if options.json is not None:
        write_record(options.json, record)


if __name__ == "__main__":
    main()
