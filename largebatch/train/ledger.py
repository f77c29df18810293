"""Read the results of each step while the next step runs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from largebatch.probes import Panel
from largebatch.probes.panel import Found
from largebatch.schedule import Step
from largebatch.train.build import Parts
from largebatch.train.nonfinite import NonFinite
from largebatch.train.step_times import Marks
from largebatch.train.telemetry import Telemetry


@dataclass
class Taken:
    """A step whose sums may not have arrived from the device yet."""

    step: Step
    number: int
    lr: float
    order_hash: str
    sums: Tensor
    own_sums: Tensor | None
    clip_factor: Tensor | None
    found_inf: Tensor | None
    found: Found
    marks: Marks
    at: float = field(default_factory=time.perf_counter)


class Ledger:
    """Reads a step's results when the next step is entered, so that a GPU never waits for the host.

    Attributes:
        open: the step that has not been read yet.
    """

    def __init__(
        self, parts: Parts, panel: Panel, nonfinite: NonFinite, telemetry: Telemetry
    ) -> None:
        self._parts, self._panel = parts, panel
        self._nonfinite, self._telemetry = nonfinite, telemetry
        self.open: Taken | None = None

    def enter(self, taken: Taken) -> bool:
        """Enter a step and read the one before; return whether a rank has been asked to stop.

        So a request to stop takes effect one step later, on all ranks alike.

        Raises:
            RunFailure: there has been no finite step for long.
        """
        before, self.open = self.open, taken
        return before is not None and self._read(before)

    def settle(self) -> bool:
        """Read the open step, before anything that depends on it."""
        taken, self.open = self.open, None
        return taken is not None and self._read(taken)

    def _read(self, taken: Taken) -> bool:
        step, number, nonfinite = taken.step, taken.number, self._nonfinite
        values = taken.sums.tolist()
        nonfinite.count(step, number, values[0], taken.own_sums, taken.clip_factor, taken.found_inf)
        joining = self._panel.read(step, number, taken.found) if taken.found else {}
        seconds = self._parts.stepper.times.seconds(taken.marks)
        if self._telemetry.due(step, number):
            extra: dict[str, Any] = {
                "lr": taken.lr,
                "order_hash": taken.order_hash,
                **seconds,
                **joining,
                **nonfinite.figures(),
            }
            if taken.clip_factor is not None:
                extra["clip_factor"] = float(taken.clip_factor)
            scale = self._parts.engine.loss_scale()
            if scale is not None:
                extra["loss_scale"] = scale
            self._telemetry.train(step, number, values[:-1], extra, taken.at)
        elif joining:
            self._telemetry.line("probes", step.end, number, joining)
        nonfinite.require_progress()
        return bool(values[-1] > 0)
