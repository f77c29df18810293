"""End a run once a validation figure reaches its target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from largebatch._errors import UserError
from largebatch.probes import Instrument, Moment
from largebatch.probes.instrument import MomentName
from largebatch.tasks import Task


class Target(Instrument):
    """Ends the run at the first evaluation whose figure is as good as ``run.target`` says.

    Args:
        figure: name of a figure in a validation line, such as ``loss`` or ``ema_loss``.
        value: value to reach.
    """

    name = "target"
    moment: MomentName = "evaluated"

    def __init__(self, task: Task[Any], figure: str, value: float) -> None:
        self._figure, self._value = figure, value
        self._known = task.known(figure)

    def measure(self, at: Moment) -> Mapping[str, Tensor]:
        """Check an evaluation against the target.

        Raises:
            UserError: the evaluation has no such figure.
        """
        record, name = at.record, self._figure
        if record["split"] != "val":
            return {}
        if not isinstance(record.get(name), (int, float)):
            raise UserError(
                f"run.target={{{name}: {self._value}}}: no such figure; there are"
                f" {', '.join(record)}"
            )
        if self._known.reached(record[name], self._value):
            at.finish({name: record[name]})
        return {}
