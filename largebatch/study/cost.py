"""Estimate the cost of branches: samples, seconds at the run's own speed, and process starts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from largebatch.record import RunDirectory, is_number, read_metrics
from largebatch.study.job import Job
from largebatch.train import Outcome


@dataclass(frozen=True)
class Speed:
    """How fast a run was.

    Attributes:
        sample: seconds of a sample in training.
        judged: seconds of an evaluation on the held-out set, including all other work besides
            training.
        start: seconds of its process besides: before the first step and, where it was seen, at the
            end.
    """

    sample: float
    judged: float
    start: float

    @staticmethod
    def of(outcome: Outcome, start: float) -> Speed:
        """Read the speed from a finished run's summary and record.

        Args:
            start: seconds of a start, for runs of before that do not say theirs.
        """
        summary = outcome.summary or {}
        lines = read_metrics(RunDirectory(outcome.directory).metrics)
        judged = sum(line.get("split") == "val" for line in lines)
        passes = judged * (2 if any(key.startswith("ema_") for key in summary) else 1)
        sample = _sample_seconds(lines) or 1 / max(float(summary["samples_per_second"]), 1e-9)
        rest = float(summary["wall_seconds"]) - sample * float(summary["samples"])
        besides = took(outcome, start) - float(summary["wall_seconds"])
        return Speed(sample, max(rest, 0.0) / max(passes, 1), besides)


def _sample_seconds(lines: Sequence[Mapping[str, Any]]) -> float:
    """Return the seconds of a sample over all sessions of a run; 0 without lines of training.

    The summary's rate is of the last session, which may have been much faster than the others.
    """
    samples, seconds, before = 0, 0.0, None
    for line in lines:
        rate = line.get("samples_per_second")
        if line.get("split") == "train" and is_number(rate) and rate > 0:
            since = line["samples"] - before if before is not None else line["batch_size"]
            samples, seconds, before = samples + since, seconds + since / rate, line["samples"]
    return seconds / max(samples, 1)


def took(outcome: Outcome, start: float) -> float:
    """Return the seconds of a finished run with its start and, where a study saw it, its end.

    Args:
        start: seconds of a start, for runs of before that do not say theirs.
    """
    summary = outcome.summary or {}
    own = float(summary["wall_seconds"]) + float(summary.get("start_seconds") or start)
    return max(own, outcome.seconds or 0.0)


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

    def seconds(self, speed: Speed) -> tuple[float, float, float]:
        """Return the seconds of training, of evaluation and of starts at a run's speed."""
        return self.samples * speed.sample, self.passes * speed.judged, self.jobs * speed.start
