"""``data.limit``: keep a part of the training samples with the class shares of the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from largebatch.data.config import DataConfig
from largebatch.data.draws import Stream, uniform
from largebatch.data.source import Split


def limited(labels: NDArray[Any], config: DataConfig, split: Split) -> NDArray[np.int64]:
    """Return which samples ``data.limit`` keeps, in their order (it limits training only).

    The choice depends only on the labels, not on the seed, the ranks or the machine. A larger limit
    keeps all samples of a smaller one. Classes share the limit by Webster's method (Balinski and
    Young 2001, "Fair representation"): the k-th sample of a class of n, in the order of a keyed
    hash, has its turn at (k - 1/2) / n.

    Args:
        labels: (n,), labels of all samples; equal labels are a class.
        config: the ``data`` section.
        split: "train" or "val".
    """
    count = len(labels)
    if split == "val" or config.limit is None or config.limit >= count:
        return np.arange(count)
    draws = uniform(0, 0, np.arange(count), Stream.LIMIT)[:, 0]
    _, classes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    by_class = np.lexsort((draws, classes))
    starts = np.cumsum(sizes) - sizes
    turns = np.empty(count)
    turns[by_class] = (np.arange(count) - starts[classes[by_class]] + 0.5) / sizes[
        classes[by_class]
    ]
    return np.sort(np.lexsort((draws, turns))[: config.limit])
