"""What measuring the noise scale costs a training step of about 50 ms, by source.

    python benchmarks/noise_cost.py --json benchmarks/results/noise_cost_cpu2.json

Two processes train in turn, one with the probe and one without, as telemetry_cost.py has it. The
probe measures every step, so that its cost stands out of the noise; at a distance of n steps it is
an n-th of that.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.progress import track
from telemetry_cost import TARGET_SECONDS, TURN_STEPS, Side, pair

from largebatch.data import DataConfig
from largebatch.models import ModelConfig
from largebatch.nn import NormConfig
from largebatch.processes import World
from largebatch.processes.lifetime import StopRequest
from largebatch.record import BenchmarkRecord, MetricsWriter, RunDirectory, write_record
from largebatch.schedule import BatchConfig, Duration, ScheduleConfig
from largebatch.train.build import build
from largebatch.train.config import CheckpointConfig, Config, EvaluateConfig, TelemetryConfig
from largebatch.train.trainer import Trainer

FORMULA = (
    "CPU ms a step = user and system time of the process in its turns / its steps; measured = "
    "median over pairs of (with the probe at every step / without) - 1; cost = measured / the "
    "default distance in steps; goal 0.5% at the default distance, norms at every step 0.2%"
)
SOURCES = {  # passes of a step, default distance
    "norms": (1, 16),
    "first": (4, 16),
    "passes": (4, 16),
    "split": (1, 100),
    "doubling": (4, 128),
    "doubling of one pass": (1, 128),
}


def train(batch: int, source: str, on: bool, pipe: int, folder: str) -> None:
    """Train until killed, a turn at a time."""
    torch.set_num_threads(1)
    never = Duration.parse("1000ep")
    passes = SOURCES[source][0]
    probe: dict[str, Any] = {"name": source.partition(" ")[0], "every": "1st"}
    if probe["name"] != "doubling":
        probe |= {"name": "noise", "source": source, "layers": "100%"}
    config = Config(
        model=ModelConfig(name="cifar_resnet20"),
        data=DataConfig(name="synthetic", image_size=32, limit=batch * 1000),
        batch=BatchConfig(size=batch, micro=batch // passes if passes > 1 else None),
        norm=NormConfig(kind="ghost", ghost_size=max(2, batch // 8)),
        schedule=ScheduleConfig(length=never),
        telemetry=TelemetryConfig(hardware_every=0.0),
        evaluate=EvaluateConfig(every=never),
        checkpoint=CheckpointConfig(every=never),
        probes=[{"name": "telemetry_cost:Turns", "pipe": pipe}, *([probe] if on else [])],
    )
    directory = RunDirectory(folder)
    directory.create()
    parts = build(config, World(), torch.device("cpu"))
    trainer = Trainer(config, parts, directory, StopRequest())
    trainer.run((MetricsWriter(directory.metrics),))


def cost(source: str, batch: int, pairs: int, turns: int) -> dict[str, Any]:
    """Return the row of a source."""
    options = ["--source", source]
    sides: dict[bool, Side] = {}
    found = []
    try:
        for on in (True, False):
            sides[on] = Side(batch, on, __file__, options)
        for _ in track(range(pairs), description=source):
            found.append(pair(sides, turns))
    finally:
        for side in sides.values():
            side.kill()
    with_it, without = ([each[side][1] * 1e3 for each in found] for side in (True, False))
    ratios = sorted(a / b - 1 for a, b in zip(with_it, without, strict=True))
    distance = SOURCES[source][1]
    return {
        "source": source,
        "CPU ms a step": round(median(without), 2),
        "measured": f"{median(ratios):+.2%}",
        "least": f"{ratios[0]:+.2%}",
        "most": f"{ratios[-1]:+.2%}",
        "every": distance,
        "cost": f"{median(ratios) / distance:+.3%}",
    }


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--turns", type=int, default=4, help="of each side in a pair")
    parser.add_argument("--sources", nargs="+", default=list(SOURCES), choices=list(SOURCES))
    parser.add_argument("--batch", type=int, help="samples a step; chosen for 50 ms by default")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--source", help=argparse.SUPPRESS)
    parser.add_argument("--pipe", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--on", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.pipe is not None:
        train(options.batch, options.source, options.on, options.pipe, options.folder)
        return
    batch = options.batch
    if batch is None:
        batch = 32
        for _ in range(2):
            side = Side(batch, False, __file__, ["--source", "norms"])
            per_sample = side.turn()[1] / batch  # CPU time: others may be at work as well
            batch = max(16, round(TARGET_SECONDS / per_sample / 16) * 16)
            side.kill()
    note = (
        f"cifar_resnet20, batch {batch} in ghosts of {max(2, batch // 8)}, one thread, a pair: "
        f"{options.turns} turns of {TURN_STEPS} steps each; first, passes and doubling in 4 passes"
    )
    record = BenchmarkRecord("noise-cost", FORMULA, [], notes=[note])
    for source in options.sources:
        record.rows.append(cost(source, batch, options.pairs, options.turns))
        if options.json is not None:  # minutes a source: what is found is kept
            write_record(options.json, record)
    print(record.table())


if __name__ == "__main__":
    main()
