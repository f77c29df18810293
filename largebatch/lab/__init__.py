"""The lectures' own experiments: each one file that prints the claim beside what it measured."""

from __future__ import annotations

from largebatch.lab import (  # noqa: F401
    altmin,
    dfa,
    dgl,
    ea,
    early_stopping,
    fa,
    gd_vs_sgd,
    greedy,
    implicit_bias,
    jam_ensembles,
    jam_generalization,
    jam_threshold,
    lr_over_batch,
    mean_field,
    model_par,
    no_budget,
    noisy_gd,
    predsim,
    smith_noise_scale,
    tail_alpha,
    ultra_slow,
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
