"""The lectures' own experiments: each one file that prints the claim beside what it measured."""

from __future__ import annotations

from largebatch.lab import (  # noqa: F401
    altmin,
    dfa,
    dgl,
    ea,
    fa,
    greedy,
    implicit_bias,
    model_par,
    predsim,
)
from largebatch.lab.experiment import (
    Check,
    Experiment,
    Findings,
    Scale,
    agreed,
    experiments,
    spread,
)

__all__ = [
    "Check",
    "Experiment",
    "Findings",
    "Scale",
    "agreed",
    "experiments",
    "spread",
]
