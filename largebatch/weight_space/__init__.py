"""The loss as a function of the weights: directions, paths between networks, smoothing.

Weights are mappings from names, as in ``state_dict``, to tensors. A loss is a function from weights
to a number, so that the caller decides about data, ranks and precision.
"""

from __future__ import annotations

from largebatch.weight_space.barrier import loss_barrier
from largebatch.weight_space.curve import Curve, curve_place, train_curve
from largebatch.weight_space.direction import filter_normalized_direction, normalize_filters
from largebatch.weight_space.path import WeightPath, bezier, path_losses, polychain
from largebatch.weight_space.smoothing import Smoothed, gaussian_noise, smoothed_loss
from largebatch.weight_space.statistics import recompute_statistics
from largebatch.weight_space.weights import Loss, Weights, moved, norm_statistics, weights_of

__all__ = [
    "Curve",
    "Loss",
    "Smoothed",
    "WeightPath",
    "Weights",
    "bezier",
    "curve_place",
    "filter_normalized_direction",
    "gaussian_noise",
    "loss_barrier",
    "moved",
    "norm_statistics",
    "normalize_filters",
    "path_losses",
    "polychain",
    "recompute_statistics",
    "smoothed_loss",
    "train_curve",
    "weights_of",
]
