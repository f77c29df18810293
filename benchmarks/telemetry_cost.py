"""What telemetry costs a training step of about 50 ms: on against off, alternating.

    python benchmarks/telemetry_cost.py --json benchmarks/results/telemetry_cpu2.json

On: the phases of every step timed, hardware read at least every second (ten times as often as by
default), figures served to Prometheus. Off: none of these. Both write the train lines of
metrics.jsonl. Each is a process that trains while the other is stopped, half a second at a time:
a busy machine slows both alike, and what a thread of the one does is never counted to the other.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from rich.progress import track

from largebatch.data import DataConfig
from largebatch.models import ModelConfig
from largebatch.probes import Instrument, Moment
from largebatch.processes import detect
from largebatch.processes.group import process_group
from largebatch.processes.heartbeat import Activity
from largebatch.processes.lifetime import StopRequest
from largebatch.record import (
    BenchmarkRecord,
    MetricsWriter,
    RunDirectory,
    TensorBoardMirror,
    write_record,
)
from largebatch.schedule import BatchConfig, Duration, ScheduleConfig
from largebatch.train.build import build
from largebatch.train.config import CheckpointConfig, Config, EvaluateConfig, TelemetryConfig
from largebatch.train.prometheus import PrometheusEndpoint
from largebatch.train.trainer import Trainer

TARGET_SECONDS = 0.05
TURN_STEPS = 10
FORMULA = (
    "step ms = median over a side's steps in a pair, the first of every turn left out; CPU ms a "
    "step = user and system time of the process in its turns / its steps; cost = median over pairs "
    "of (on / off) - 1"
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


class Turns(Instrument):
    """Counts a trainer's steps; stops this process after every turn and tells what it took."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._begin()

    def measure(self, at: Moment) -> dict[str, Any]:
        """Take in a step."""
        self._times.append(time.perf_counter())
        if len(self._times) > TURN_STEPS:
            steps = [b - a for a, b in zip(self._times[1:-1], self._times[2:], strict=True)]
            busy = (time.process_time() - self._busy) / TURN_STEPS
            os.write(self._pipe, (json.dumps([steps, busy]) + "\n").encode())
            os.kill(os.getpid(), signal.SIGSTOP)
            self._begin()
        return {}

    def _begin(self) -> None:
        self._times = [time.perf_counter()]
        self._busy = time.process_time()


def train(batch: int, on: bool, pipe: int, folder: str) -> None:
    """Train until killed, a turn at a time."""
    never = Duration.parse("1000ep")
    config = Config(
        model=ModelConfig(name="cifar_resnet20"),
        data=DataConfig(name="synthetic", image_size=32, limit=batch * 1000),
        batch=BatchConfig(size=batch),
        schedule=ScheduleConfig(length=never),
        telemetry=TelemetryConfig(hardware_every=1.0 if on else 0.0),
        evaluate=EvaluateConfig(every=never),
        checkpoint=CheckpointConfig(every=never),
        probes=[{"name": "telemetry_cost:Turns", "pipe": pipe}],  # this file: Python's first folder
    )
    world, cpu = detect(), torch.device("cpu")
    with process_group(world, "gloo", 600.0, cpu, 120.0 if on else 0.0) as heartbeat:
        directory = RunDirectory(folder)
        directory.create()
        parts = build(config, world, cpu)
        if not on:
            parts.stepper.times = NoTimes()  # type: ignore[assignment]
        writers: Any = (MetricsWriter(directory.metrics), TensorBoardMirror(directory.tensorboard))
        trainer = Trainer(config, parts, directory, StopRequest(), heartbeat)
        trainer.run((*writers, PrometheusEndpoint(0)) if on else writers)


class Side:
    """A process that trains with telemetry or without, when it has its turn.

    Args:
        script: the file to run; it takes ``--batch``, ``--pipe``, ``--folder`` and ``--on``.
        options: further ones.
    """

    def __init__(
        self, batch: int, on: bool, script: str = __file__, options: Sequence[str] = ()
    ) -> None:
        end, pipe = os.pipe()
        self._folder = tempfile.TemporaryDirectory()  # the process is killed and leaves its run
        command = [sys.executable, script, "--batch", str(batch), "--pipe", str(pipe)]
        command += ["--folder", self._folder.name, *options]
        command += ["--on"] if on else []
        self._process = subprocess.Popen(command, pass_fds=[pipe], stdout=subprocess.DEVNULL)
        os.close(pipe)
        self._told = os.fdopen(end)
        self._take()  # the first warms up

    def turn(self) -> tuple[list[float], float]:
        """Let it train for a turn; return the steps' seconds and the CPU seconds a step."""
        self._process.send_signal(signal.SIGCONT)
        return self._take()

    def _take(self) -> tuple[list[float], float]:
        line = self._told.readline()
        if not line:
            raise SystemExit("the training process ended")
        os.waitpid(self._process.pid, os.WUNTRACED)
        steps, busy = json.loads(line)
        return steps, busy

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()


def pair(sides: dict[bool, Side], turns: int) -> dict[bool, tuple[float, float]]:
    """Return the median step's seconds and the CPU seconds a step of both sides."""
    steps: dict[bool, list[float]] = {True: [], False: []}
    busy: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(turns):
        for on in (True, False) if turn % 2 else (False, True):
            found, spent = sides[on].turn()
            steps[on] += found
            busy[on].append(spent)
    return {on: (median(steps[on]), mean(busy[on])) for on in sides}


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--turns", type=int, default=20, help="of each side in a pair")
    parser.add_argument("--batch", type=int, help="samples a step; chosen for 50 ms by default")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pipe", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--on", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.pipe is not None:
        train(options.batch, options.on, options.pipe, options.folder)
        return
    batch = options.batch
    if batch is None:
        batch = 32
        for _ in range(3):
            side = Side(batch, False)
            batch = max(2, round(batch * TARGET_SECONDS / median(side.turn()[0])))
            side.kill()
    sides: dict[bool, Side] = {}
    pairs = []
    try:
        for on in (True, False):
            sides[on] = Side(batch, on)
        for _ in track(range(options.pairs), description="pairs"):
            pairs.append(pair(sides, options.turns))
    finally:
        for side in sides.values():
            side.kill()
    rows = []
    for name, place in (("step ms", 0), ("CPU ms a step", 1)):
        with_it, without = ([each[side][place] * 1e3 for each in pairs] for side in (True, False))
        ratios = sorted(a / b - 1 for a, b in zip(with_it, without, strict=True))
        rows.append(
            {
                "figure": name,
                "on": round(median(with_it), 3),
                "off": round(median(without), 3),
                "cost": f"{median(ratios):+.2%}",
                "least": f"{ratios[0]:+.2%}",
                "most": f"{ratios[-1]:+.2%}",
                "pairs": len(ratios),
            }
        )
    note = (
        f"cifar_resnet20, batch {batch}, a pair: {options.turns} turns of {TURN_STEPS} steps each"
    )
    record = BenchmarkRecord("telemetry", FORMULA, rows, notes=[note])
    print(record.table())
    if options.json is not None:
        write_record(options.json, record)


if __name__ == "__main__":
    main()
