"""The lectures' own experiments: each one file that prints the claim beside what it measured."""

from __future__ import annotations

from largebatch.lab import (  # noqa: F401
    batch_channel,
    blind_spots,
    dropout_passes,
    group_or_batch_norm,
    implicit_bias,
    initial_gradients,
    input_normalization,
    residual_scale,
    signal_propagation,
    smooth_by_batch_norm,
    text_blind_spots,
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
