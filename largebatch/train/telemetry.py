"""Write the lines of metrics.jsonl."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, TypeAlias

from largebatch.record import MetricsWriter, TensorBoardMirror
from largebatch.schedule import Clock, Duration, Every, Step
from largebatch.tasks import Task
from largebatch.train.progress import Progress
from largebatch.train.prometheus import PrometheusEndpoint

Writers: TypeAlias = (
    tuple[()]
    | tuple[MetricsWriter]
    | tuple[MetricsWriter, TensorBoardMirror]
    | tuple[MetricsWriter, TensorBoardMirror, PrometheusEndpoint]
)

HELD_SECONDS = 0.25  # train lines are written together this often: formatting one costs more


class Telemetry:
    """Writes the lines of a run; silent until :meth:`open`, and on all ranks but 0.

    A line's ``split`` tells its kind. ``train``: a step. ``val``: an evaluation on the validation
    set. ``also``: an evaluation from ``evaluate.also`` at a time without a validation. ``probes``:
    figures of probes at a step without a train line. ``hardware``: the hardware of a rank.

    Args:
        task: turns sums into figures.
        every: distance between train lines.
        shown: whether this rank writes.

    Attributes:
        watts: power of all ranks' GPUs together; None if not known.
        train_seconds, train_samples: seconds and samples of training in the session, without
            evaluations.
    """

    def __init__(self, task: Task[Any], every: Duration, clock: Clock, shown: bool = True) -> None:
        self.task = task
        self._clock, self._shown = clock, shown
        self._every = Every(every, clock)
        self._writers: Writers = ()
        self._progress = Progress(task, 0, 0, shown=False)
        self._last_time = time.perf_counter()
        self._last_samples = 0
        self._paused = 0.0
        self._held: list[tuple[Step, int, list[float], dict[str, Any], float]] = []
        self._written = 0.0
        self.watts: float | None = None
        self.train_seconds = 0.0
        self.train_samples = 0

    def open(self, writers: Writers, progress: Progress | None = None, samples: int = 0) -> None:
        """Begin a session: set the destinations of lines from now on.

        Args:
            writers: destinations of lines; the metrics file is first.
            progress: display for the user; None: none.
            samples: the run's samples so far.
        """
        self._writers = writers
        self._last_samples = samples
        if progress is not None:
            self._progress = progress
        self._last_time = time.perf_counter()

    def due(self, step: Step, number: int) -> bool:
        """Return whether a step gets a train line from this rank."""
        return self._shown and self._every.due(step, number)

    def train(
        self, step: Step, number: int, sums: list[float], extra: dict[str, Any], now: float
    ) -> None:
        """Queue the train line of a step; lines are written together a moment later.

        Args:
            sums: loss sum, sums of the figures and weight over all ranks, in this order.
            now: time of the step, by ``time.perf_counter``.
        """
        self._held.append((step, number, sums, extra, now))
        if now - self._written > HELD_SECONDS:
            self.flush()
            self._written = now

    def flush(self) -> None:
        """Write the queued train lines."""
        held, self._held = self._held, []
        for line in held:
            self._train(*line)

    def _train(
        self, step: Step, number: int, sums: list[float], extra: dict[str, Any], now: float
    ) -> None:
        since = step.end - self._last_samples
        record: dict[str, Any] = {
            **self.place("train", step.end, number),
            **self.task.read(sums),
            **extra,
            "batch_size": step.size,
            "samples_per_second": since / max(now - self._last_time, 1e-9),
        }
        if self.watts is not None:
            record["samples_per_joule"] = record["samples_per_second"] / self.watts
        self._last_time, self._last_samples = now, step.end
        self.train_seconds += since / record["samples_per_second"]
        self.train_samples += since
        self._write(record)
        if self._progress.due:
            self._progress.train(record)

    def place(self, split: str, samples: int, number: int) -> dict[str, Any]:
        """Return the begin of every line: its split and its position in the run."""
        epoch = round(samples / self._clock.epoch_samples, 6)
        return {"split": split, "samples": samples, "step": number, "epoch": epoch}

    def pause(self) -> None:
        """Begin an evaluation: the time from now on is not training time."""
        self._paused = time.perf_counter()

    def evaluation(self, record: dict[str, Any]) -> None:
        """Write the line of an evaluation, and end it: training goes on."""
        self.flush()
        self._write(record)
        if record["split"] == "val":
            self._progress.validation(record)
        self._last_time += time.perf_counter() - self._paused

    def line(self, split: str, samples: int, number: int, values: Mapping[str, Any]) -> None:
        """Write a line of another kind, after the queued lines."""
        if self._shown:
            self.flush()
            self._write({**self.place(split, samples, number), **values})

    def sync(self) -> None:
        """Sync the lines to disk; needed before a checkpoint is saved."""
        self.flush()
        if self._writers:
            self._writers[0].sync()

    def close(self) -> None:
        """End the session."""
        self.flush()
        self._progress.close()

    def _write(self, record: Mapping[str, Any]) -> None:
        for writer in self._writers:
            writer.write(record)
