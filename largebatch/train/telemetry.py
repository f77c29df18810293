"""The lines of metrics.jsonl: what they hold, and when they are worth their cost."""

from __future__ import annotations

import math
import time
from typing import Any, TypeAlias

import torch
from torch import nn

from largebatch.distributed.sharding import whole_norm
from largebatch.processes.heartbeat import Heartbeat
from largebatch.record import MetricsWriter, TensorBoardMirror
from largebatch.schedule import Clock, Duration, Step
from largebatch.tasks import Task
from largebatch.train.progress import Progress
from largebatch.train.prometheus import PrometheusEndpoint

Writers: TypeAlias = (
    tuple[()]
    | tuple[MetricsWriter, TensorBoardMirror]
    | tuple[MetricsWriter, TensorBoardMirror, PrometheusEndpoint]
)

HELD_SECONDS = 0.25  # train lines are written together this often: formatting one costs more
SPACING = 1.2  # ratio of the steps at which weights are measured: distances go with log steps


class Every:
    """Which steps lie a duration apart: every so many steps, or the first past each stretch."""

    def __init__(self, every: Duration, clock: Clock) -> None:
        self._in_steps = every.unit == "st"
        self._length = max(1, int(every.value) if self._in_steps else every.samples(clock))

    def due(self, step: Step, number: int) -> bool:
        """Whether the step that was the ``number``-th (from 1) is one of them."""
        if self._in_steps:
            return number % self._length == 0
        return step.end // self._length > step.start // self._length


class WeightDistance:
    """Norm of the weights and of their way from the start, ``|w|`` and ``|w - w_0|``.

    Over all parameters (Hoffer et al. 2017, section 4, found ``|w - w_0|`` to grow with the log of
    the steps), measured at steps spaced by a constant ratio, since each is a pass over all weights.
    """

    def __init__(self, model: nn.Module) -> None:
        self._weights = [p.detach() for p in model.parameters()]
        self._start = [p.clone() for p in self._weights]
        self._spaced = 1.0

    def due(self, step: int) -> bool:
        """Whether ``step`` (from 1, never less than at the call before) is one of the spaced."""
        while round(self._spaced) < step:
            self._spaced *= SPACING
        return round(self._spaced) == step

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Return ``weight_norm`` and ``weight_distance``."""
        moved = torch._foreach_sub(self._weights, self._start)
        return {
            "weight_norm": whole_norm(self._weights),
            "weight_distance": whole_norm(moved),
        }


class Telemetry:
    """Writes train and validation lines on rank 0.

    Args:
        writers: where lines go, on rank 0; the metrics first.
        task: turns sums into figures.
        heartbeat: brings the readings of all ranks' hardware, taken off the training thread.
        hardware_every: seconds between the lines of those; 0: none.
    """

    def __init__(
        self,
        writers: Writers,
        progress: Progress,
        distance: WeightDistance | None,
        task: Task[Any],
        every: Duration,
        clock: Clock,
        heartbeat: Heartbeat | None = None,
        hardware_every: float = 0.0,
    ) -> None:
        self._writers, self.progress, self.distance = writers, progress, distance
        self.task = task
        self._clock = clock
        self.due = Every(every, clock).due  # whether a step gets a train line
        self._seconds = 0.0
        self._last_time = time.perf_counter()
        self._last_samples: int | None = None
        self._held: list[tuple[Step, int, list[float], dict[str, Any], float]] = []
        self._written = 0.0
        self._heartbeat, self._hardware_every = heartbeat, hardware_every
        self._hardware_next = time.monotonic() + hardware_every
        self._watts: float | None = None
        self.train_seconds = 0.0
        self.train_samples = 0

    def train(
        self, step: Step, number: int, sums: list[float], extra: dict[str, Any], now: float
    ) -> None:
        """Take the train line of a step; it is written with others a moment later.

        Args:
            sums: loss sum, sums of the figures and weight over all ranks, in this order.
            now: when the step was taken, by ``time.perf_counter``.
        """
        self._held.append((step, number, sums, extra, now))
        if now - self._written > HELD_SECONDS:
            self.flush()
            self._written = now

    def flush(self) -> None:
        """Write the train lines that are held back."""
        held, self._held = self._held, []
        for line in held:
            self._train(*line)
        if held and self._heartbeat is not None and self._hardware_every > 0:
            step, number, *_ = held[-1]
            if time.monotonic() >= self._hardware_next:
                self._hardware_next = time.monotonic() + self._hardware_every
                self._hardware(step, number, self._heartbeat)

    def _hardware(self, step: Step, number: int, heartbeat: Heartbeat) -> None:
        """Write a line for every rank that has sent a reading."""
        watts: dict[str, float] = {}
        beats = sorted(heartbeat.beats().items())
        readings = [(rank, beat, beat["hardware"]) for rank, beat in beats if beat.get("hardware")]
        for rank, beat, reading in readings:
            record = {
                "split": "hardware",
                "samples": step.end,
                "step": number,
                "epoch": round(step.end / self._clock.epoch_samples, 6),
                "rank": rank,
                "host": beat["host"],
                **reading,
            }
            self._write(record)
            # Ranks may share a GPU, whose power counts once; a rank that tells none makes a NaN.
            gpu = reading.get("gpu", f"of rank {rank}")
            watts[gpu] = reading.get("gpu_power_watts", math.nan)
        total = sum(watts.values())
        everyone = len(readings) == heartbeat.world.world_size
        self._watts = total if everyone and total > 0 else None

    def _train(
        self, step: Step, number: int, sums: list[float], extra: dict[str, Any], now: float
    ) -> None:
        since = step.end - (step.start if self._last_samples is None else self._last_samples)
        record: dict[str, Any] = {
            "split": "train",
            "samples": step.end,
            "step": number,
            "epoch": round(step.end / self._clock.epoch_samples, 6),
            **self.task.read(sums),
            **extra,
            "batch_size": step.size,
            "samples_per_second": since / max(now - self._last_time, 1e-9),
        }
        if self._watts is not None:
            record["samples_per_joule"] = record["samples_per_second"] / self._watts
        self._last_time, self._last_samples = now, step.end
        self.train_seconds += since / record["samples_per_second"]
        self.train_samples += since
        self._write(record)
        if self.progress.due:
            self.progress.train(record)

    def validation(
        self, samples: int, number: int, sums: list[float], extra: dict[str, Any]
    ) -> dict[str, Any]:
        """Write the validation line after ``samples``; the time until now is not training time."""
        self.flush()
        record: dict[str, Any] = {
            "split": "val",
            "samples": samples,
            "step": number,
            "epoch": round(samples / self._clock.epoch_samples, 6),
            **self.task.read(sums),
            "count": int(max(sums[-1], 1.0)),
            **extra,
        }
        if self.distance is not None:
            record.update(self.distance.measure())
        self._write(record)
        self.progress.validation(record)
        self._last_time = time.perf_counter()
        return record

    def sync(self) -> None:
        """Put the lines on disk: a checkpoint counts on those before it."""
        self.flush()
        if self._writers:
            self._writers[0].sync()

    def _write(self, record: dict[str, Any]) -> None:
        for writer in self._writers:
            writer.write(record)
