"""The lectures' own experiments: each one file that prints the claim beside what it measured."""

from __future__ import annotations

from largebatch.lab import (  # noqa: F401
    batch_channel,
    blind_spots,
    dropout_passes,
    early_stopping,
    gd_vs_sgd,
    group_or_batch_norm,
    implicit_bias,
    initial_gradients,
    input_normalization,
    jam_ensembles,
    jam_generalization,
    jam_threshold,
    lr_over_batch,
    manifold_mixup,
    mean_field,
    no_budget,
    noisy_gd,
    residual_scale,
    signal_propagation,
    smith_noise_scale,
    smooth_by_batch_norm,
    tail_alpha,
    text_blind_spots,
    ultra_slow,
    weight_decay,
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
