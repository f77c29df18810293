"""The lectures' own experiments: each one file that prints the claim beside what it measured."""

from __future__ import annotations

from largebatch.lab import (  # noqa: F401
    adam_cnn,
    adamw_grid,
    barriers_of_sgd,
    dinh,
    grad_overlap,
    hess_slq,
    hess_top,
    implicit_bias,
    keskar,
    keskar_nets,
    landscape_line,
    landscape_plane,
    lr_range,
    mode_connectivity,
    opt_paths,
    outlier_batch,
    smooth_loss,
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
