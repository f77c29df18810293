"""The lectures' own experiments: each one file that prints the claim beside what it measured."""

from __future__ import annotations

from largebatch.lab import (  # noqa: F401
    adam_cnn,
    adamw_grid,
    barriers_of_sgd,
    dinh,
    early_stopping,
    gd_vs_sgd,
    grad_overlap,
    hess_slq,
    hess_top,
    implicit_bias,
    jam_ensembles,
    jam_generalization,
    jam_threshold,
    keskar,
    keskar_nets,
    landscape_line,
    landscape_plane,
    lr_over_batch,
    lr_range,
    mean_field,
    mode_connectivity,
    no_budget,
    noisy_gd,
    opt_paths,
    outlier_batch,
    smith_noise_scale,
    smooth_loss,
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
