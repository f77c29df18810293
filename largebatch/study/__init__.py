"""Studies: questions that many training runs answer together.

A study names the runs (jobs) that it needs. This package trains them, each in a process of its own,
and concludes from their results: for example the critical batch size, the steps to a target, or a
sweep over config keys. ``largebatch study NAME`` is the command.
"""

from __future__ import annotations

from largebatch.study import (  # noqa: F401
    critical_batch,
    decision,
    generalization_gap,
    steps_to_target,
    sweep,
)
from largebatch.study.carry_out import carry_out
from largebatch.study.grid import GridStudy
from largebatch.study.job import Job
from largebatch.study.study import Done, Study, studies

__all__ = ["Done", "GridStudy", "Job", "Study", "carry_out", "studies"]
