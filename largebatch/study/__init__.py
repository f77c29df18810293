"""Questions asked of many runs: a study names them, and they are carried out and read."""

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
