"""The clock of a run: what a duration is in samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from largebatch._errors import UserError

if TYPE_CHECKING:
    from largebatch.schedule.plan import BatchPlan


@dataclass(frozen=True)
class Clock:
    """Converts durations to samples.

    Args:
        epoch_samples: training samples in an epoch.
        total_samples: length of the run in samples; None while it is not known, and then a
            percentage cannot be converted.
        plan: the batch plan, which says how many samples a number of steps is; None: steps cannot
            be converted.
    """

    epoch_samples: int
    total_samples: int | None = None
    plan: BatchPlan | None = None

    @property
    def total(self) -> int:
        """The length of the run in samples.

        Raises:
            UserError: it is not known here.
        """
        if self.total_samples is None:
            raise UserError("a duration in % of the run: its length is not known here")
        return self.total_samples

    def samples_after(self, steps: int) -> int:
        """Return the samples seen after ``steps`` optimizer steps.

        Raises:
            UserError: there is no batch plan here.
        """
        if self.plan is None:
            raise UserError(f"a duration of {steps}st: the batch is not known here")
        return self.plan.samples_after(steps)
