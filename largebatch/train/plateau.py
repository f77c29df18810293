"""End a run whose validation loss no longer falls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from largebatch.probes import Instrument, Moment
from largebatch.probes.instrument import MomentName


class Plateau(Instrument):
    """Ends the run when the validation loss has set no new low for ``patience`` samples.

    Hoffer et al. 2017, section 5: train without a budget, until the loss ceases to improve. The
    length of the schedule remains the upper limit.

    Args:
        patience: largest number of samples since the lowest loss.
    """

    name = "plateau"
    moment: MomentName = "evaluated"
    resumes = True

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._lowest: float | None = None
        self._since = 0

    def measure(self, at: Moment) -> Mapping[str, Tensor]:
        """Record the loss of an evaluation."""
        record = at.record
        if record["split"] != "val":
            return {}
        loss, samples = float(record["loss"]), int(record["samples"])
        if self._lowest is None or loss < self._lowest:
            self._lowest, self._since = loss, samples
        elif samples - self._since >= self._patience:
            at.finish({"loss": self._lowest})
        return {}

    def state(self) -> dict[str, float]:
        """Return the lowest loss and its sample; nothing before the first evaluation."""
        if self._lowest is None:
            return {}
        return {"lowest": self._lowest, "since": float(self._since)}

    def check(self, state: Any) -> None:
        """Require a loss and a number of samples."""
        numbers = isinstance(state, dict) and all(isinstance(v, float) for v in state.values())
        if not numbers or state.keys() not in ({"lowest", "since"}, set()):
            raise ValueError("no lowest loss")

    def load(self, state: Any) -> None:
        """Restore the lowest loss so far."""
        if state:
            self._lowest, self._since = state["lowest"], int(state["since"])
