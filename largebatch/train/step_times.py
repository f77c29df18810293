"""Measure the parts of a step's time: waiting for data, computing, communicating, updating."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch

from largebatch.processes.heartbeat import Activity

PHASES = ("data", "compute", "communication", "optimizer")
Marks = list[tuple[str, Any]]


class StepTimes:
    """Marks when a step enters each phase; a phase's time is the difference of two marks.

    On a CPU the marks are clock times. On a GPU they are stream events, so that ``data`` and
    ``communication`` count only time that no computation hides.

    Args:
        activity: called with each phase, so that other ranks can read what this rank is doing.
    """

    def __init__(self, device: torch.device, activity: Activity | None = None) -> None:
        self.activity = activity or Activity()
        self._events = device.type == "cuda"
        self._marks: Marks = []
        self.totals = dict.fromkeys(PHASES, 0.0)
        """Seconds of all steps whose marks have been read."""
        self.steps = 0

    def begin(self) -> None:
        """Begin a step in phase ``compute``; marks of an abandoned step are dropped."""
        self._marks = []
        self.enter("compute")

    def enter(self, phase: str) -> None:
        """End the previous phase and begin this one; a name that is not a phase ends the step."""
        mark: Any
        if self._events:
            mark = torch.cuda.Event(enable_timing=True)
            mark.record()
        else:
            mark = time.perf_counter()
        self._marks.append((phase, mark))
        self.activity.doing = phase

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Exclude the time of a ``with`` block, which is not part of the run's steps."""
        marks, doing = self._marks, self.activity.doing
        self._marks = []
        try:
            yield
        finally:
            self._marks, self.activity.doing = marks, doing

    def take(self) -> Marks:
        """Return the marks of the step."""
        marks, self._marks = self._marks, []
        return marks

    def seconds(self, marks: Marks) -> dict[str, float]:
        """Return ``data_seconds``, ``compute_seconds``, ... of one step, which must be over."""
        spent = dict.fromkeys(PHASES, 0.0)
        for (phase, begin), (_, end) in pairwise(marks):
            spent[phase] += begin.elapsed_time(end) / 1e3 if self._events else end - begin
        for phase, value in spent.items():
            self.totals[phase] += value
        self.steps += 1
        return {f"{phase}_seconds": round(value, 7) for phase, value in spent.items()}
