"""Estimate the cost of branches: samples, seconds at the run's own speed, and process starts."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from largebatch.record import RunDirectory, read_metrics
from largebatch.study.job import Job


@dataclass(frozen=True)
class Speed:
    """How fast a run was.

    Attributes:
        sample: seconds of a sample in training.
        judged: seconds of an evaluation on the held-out set, including all other work besides
            training.
    """

    sample: float
    judged: float

    @staticmethod
    def of(run: RunDirectory, summary: dict[str, Any]) -> Speed:
        """Read the speed from a finished run's summary and record."""
        sample = 1 / max(float(summary["samples_per_second"]), 1e-9)
        judged = sum(line.get("split") == "val" for line in read_metrics(run.metrics))
        passes = judged * (2 if any(key.startswith("ema_") for key in summary) else 1)
        rest = float(summary["wall_seconds"]) - sample * float(summary["samples"])
        return Speed(sample, max(rest, 0.0) / max(passes, 1))


@dataclass(frozen=True)
class Cost:
    """The cost of a set of branch jobs.

    Attributes:
        samples: training samples.
        passes: evaluations on the held-out set.
        jobs: number of processes to start.
    """

    samples: int
    passes: int
    jobs: int

    @staticmethod
    def of(jobs: Iterable[tuple[Job, int]]) -> Cost:
        """Add up jobs, each given with the sample of the run at which it starts."""
        samples, passes, count = 0, 0, 0
        for job, begin in jobs:
            config = job.config
            length = float(config.schedule.length.value) - begin
            steps = math.ceil(length / config.batch.size)
            every = max(1.0, float(config.evaluate.every.value))
            judged = max(1, min(steps, math.ceil(length / every)))
            samples += round(length)
            passes += judged * (1 if config.ema.half_life is None else 2)
            count += 1
        return Cost(samples, passes, count)

    def seconds(self, speed: Speed) -> tuple[float, float]:
        """Return the seconds of training and of evaluation at a run's speed."""
        return self.samples * speed.sample, self.passes * speed.judged


def start_seconds() -> float:
    """Return the age of this process in seconds: an estimate of a job's time to start."""
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    up = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    return up - float(fields[19]) / os.sysconf("SC_CLK_TCK")
