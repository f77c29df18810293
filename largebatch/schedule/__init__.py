"""Durations, batch plans and learning-rate curves: pure functions of samples seen.

Time is counted in samples: changing the batch or the number of ranks does not move anything that is
set in samples. Exceptions are documented as such (a length in steps, ``st``, and regime adaptation,
which keeps the number of steps).
"""

from largebatch.schedule.batch_scaling import half_life_factor, scale_lr
from largebatch.schedule.clock import Clock
from largebatch.schedule.config import BatchConfig, PhaseConfig, ScheduleConfig
from largebatch.schedule.constant import constant
from largebatch.schedule.control import NoiseRule
from largebatch.schedule.cosine import cosine
from largebatch.schedule.curve import Curve, CurveFacts, Timeline, curves
from largebatch.schedule.cyclical import cyclical
from largebatch.schedule.duration import Duration
from largebatch.schedule.every import Every
from largebatch.schedule.multistep import multistep
from largebatch.schedule.plan import BatchPlan, Phase, Step
from largebatch.schedule.poly import poly
from largebatch.schedule.schedule import Schedule, require_cycles
from largebatch.schedule.sgdr import sgdr

__all__ = [
    "BatchConfig",
    "BatchPlan",
    "Clock",
    "Curve",
    "CurveFacts",
    "Duration",
    "Every",
    "NoiseRule",
    "Phase",
    "PhaseConfig",
    "Schedule",
    "ScheduleConfig",
    "Step",
    "Timeline",
    "constant",
    "cosine",
    "curves",
    "cyclical",
    "half_life_factor",
    "multistep",
    "poly",
    "require_cycles",
    "scale_lr",
    "sgdr",
]
