"""``quadratic``: noisy linear regression with exactly known training, to check studies.

Features are Gaussian with variances i^-0.75, i = 1 to 256. Targets are a fixed linear map of the
features plus noise. Every epoch draws anew, so no sample comes twice. The validation set is the 256
axes of the features, scaled. Its mean loss is exactly the excess risk of the population, 1/2 (w -
truth)' H (w - truth), without sampling noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from largebatch.data.config import DataConfig
from largebatch.data.draws import Stream, uniform
from largebatch.data.feature_batch import FeatureBatch
from largebatch.data.registry import datasets
from largebatch.data.request import Request
from largebatch.data.source import Delivery, Source, Split

FEATURES = 256
SPECTRUM: NDArray[np.float64] = np.arange(1.0, FEATURES + 1) ** -0.75
"""Variances of the features: the Hessian's eigenvalues."""
NOISE = 0.5
"""Standard deviation of the noise of targets."""
TRUTH: NDArray[np.float64] = np.sqrt(2 / (SPECTRUM * FEATURES))
"""The weights to be found: from 0 every axis has the same part of an excess risk of 1."""
EPOCH = 8192


class QuadraticSource(Source):
    """Draws every row from its number, its epoch and the run's seed."""

    def __init__(self, split: Split, length: int) -> None:
        self._split, self._length = split, length

    def __len__(self) -> int:
        return self._length

    def offers(self) -> dict[str, Any]:
        """Return the shape of a row as an image of one pixel, and the number of outputs."""
        return {"image_shape": (FEATURES, 1, 1), "num_classes": 1, "outputs": 1}

    def batch(self, request: Request, delivery: Delivery) -> FeatureBatch:
        """Draw the rows of one request."""
        if self._split == "val":
            rows = np.sqrt(SPECTRUM * FEATURES)[request.indices]
            inputs = np.zeros((len(rows), FEATURES))
            inputs[np.arange(len(rows)), request.indices] = rows
            targets = inputs @ TRUTH
        else:
            normal = _normal(delivery.seed, request.epoch, request.indices, FEATURES + 1)
            inputs = normal[:, :FEATURES] * np.sqrt(SPECTRUM)
            targets = inputs @ TRUTH + NOISE * normal[:, FEATURES]
        ghosts = request.ghosts or (len(request.indices),)

        def there(array: NDArray[np.float64]) -> torch.Tensor:
            return torch.from_numpy(array).to(delivery.device, delivery.dtype)

        return FeatureBatch(
            there(inputs[:, :, None, None]),
            there(targets[:, None]),
            request.indices,
            request.positions,
            ghosts if len(request.indices) else (),
        )


@datasets.register(
    "quadratic", "noisy linear regression, 256 features, whose training is known exactly"
)
def quadratic(config: DataConfig, split: Split, num_classes: int | None = None) -> QuadraticSource:
    """Build the source; an epoch has ``data.limit`` rows, or 8,192."""
    return QuadraticSource(split, FEATURES if split == "val" else config.limit or EPOCH)


def _normal(seed: int, epoch: int, indices: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Draw standard normal numbers, keyed to the sample: (n, count)."""
    pairs = (count + 1) // 2
    draws = uniform(seed, epoch, indices, Stream.FEATURES, 2 * pairs)
    radius = np.sqrt(-2 * np.log1p(-draws[:, :pairs]))
    angle = 2 * np.pi * draws[:, pairs:]
    both = np.concatenate((radius * np.cos(angle), radius * np.sin(angle)), axis=1)
    return both[:, :count]
