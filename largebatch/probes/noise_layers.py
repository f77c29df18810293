"""The noise scale of an optimizer that normalises layer by layer, from those of the layers."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]


def layerwise_noise_scale(signal: Rows, trace: Rows, lengths: Rows) -> float:
    """Return the batch at which LARS makes half of the progress that an infinite one would.

    Layer l moves by a fixed length s_l along its gradient, which of B samples points into the
    direction of G_l with the cosine 1 / sqrt(1 + T_l / (B |G_l|^2)). Summed over layers a step
    follows the gradient by ``U(B) = sum_l s_l |G_l| / sqrt(1 + T_l / (B |G_l|^2))``, and the best
    rate gains U(B)^2. The result solves U(B)^2 = U(inf)^2 / 2; for one layer it is T / |G|^2, as
    McCandlish et al. (2018) have it for SGD. For LAMB, whose steps Adam's second moment turns
    further, it is an approximation.

    Args:
        signal: (layers,), means of |G_l|^2; a layer whose mean is not positive counts as still.
        trace: (layers,), means of T_l.
        lengths: (layers,), s_l: the length of the weights, up to a factor common to all.

    Returns:
        samples; ``inf`` where no layer has a signal.
    """
    moving = signal > 0
    signal, trace = signal[moving], np.maximum(trace[moving], 0.0)
    pull = lengths[moving] * np.sqrt(signal)
    half = float(pull.sum()) / math.sqrt(2)
    if half <= 0:
        return math.inf
    ratios = trace / signal
    low, high = 0.0, float(ratios.max())  # there no layer has lost more than its half
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        follows = float((pull / np.sqrt(1 + ratios / middle)).sum())
        low, high = (middle, high) if follows < half else (low, middle)
    return (low + high) / 2
