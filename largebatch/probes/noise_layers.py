"""The noise scale of a layer-wise optimizer (LARS, LAMB), from the terms of the layers."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]


def layerwise_noise_scale(signal: Rows, trace: Rows, lengths: Rows) -> float:
    """Return the batch at which LARS makes half the progress of an infinite batch.

    Layer l moves by a fixed length s_l along its gradient. The gradient of B samples has the cosine
    1 / sqrt(1 + T_l / (B |G_l|^2)) with the true gradient G_l. Summed over layers, a step follows
    the gradient by ``U(B) = sum_l s_l |G_l| / sqrt(1 + T_l / (B |G_l|^2))``, and the best rate
    gains U(B)^2. The result solves U(B)^2 = U(inf)^2 / 2. For one layer the result is T / |G|^2, as
    in McCandlish et al. (2018) for SGD. For LAMB, whose steps also depend on Adam's second moment,
    this is an approximation.

    Args:
        signal: (layers,), means of |G_l|^2; layers whose mean is not positive are left out.
        trace: (layers,), means of T_l.
        lengths: (layers,), s_l: norm of the weights, up to a factor common to all layers.

    Returns:
        The noise scale in samples; ``inf`` if no layer has a signal.
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
