"""Changes of the optimizer's state at the begin of a phase of the batch plan."""

from __future__ import annotations

import torch
from torch import nn

from largebatch.optim import scale_second_moment
from largebatch.schedule import Schedule, Step


class PhaseMoments:
    """Scales the second moment before the first step of a phase that asks for this."""

    def __init__(
        self, schedule: Schedule, optimizer: torch.optim.Optimizer, model: nn.Module
    ) -> None:
        self._schedule, self._optimizer, self._model = schedule, optimizer, model
        self._entered = -1  # sample of the last such step, which may be tried again

    def enter(self, step: Step) -> None:
        """Prepare for a step; repeating the step does not scale again."""
        if not step.phase.second_moment or step.start in (0, self._entered):
            return
        if self._schedule.plan.step_before(step.start).phase is not step.phase:
            self._entered = step.start
            scale_second_moment(self._optimizer, self._model, dict(step.phase.second_moment))
