"""The clock of a run: convert durations to samples."""

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
        total_samples: length of the run in samples. None while it is not known; then a percentage
            cannot be converted.
        plan: the batch plan, which converts a number of steps to samples; None: steps cannot be
            converted.
        settled: samples up to which the plan is known before the run; None: all of it.
    """

    epoch_samples: int
    total_samples: int | None = None
    plan: BatchPlan | None = None
    settled: int | None = None

    @property
    def total(self) -> int:
        """The length of the run in samples.

        Raises:
            UserError: the length is not known yet.
        """
        if self.total_samples is None:
            raise UserError("a duration in % of the run: its length is not known here")
        return self.total_samples

    def samples_after(self, steps: int) -> int:
        """Return the samples seen after ``steps`` optimizer steps.

        Raises:
            UserError: there is no batch plan, or it is made during the run.
        """
        if self.plan is None:
            raise UserError(f"a duration of {steps}st: the batch is not known here")
        samples = self.plan.samples_after(steps)
        if self.settled is not None and samples > self.settled:
            raise UserError(
                f"a duration of {steps}st: batch.control decides how many samples that is; write"
                " it in ep, sa or %"
            )
        return samples
