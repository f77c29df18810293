"""Signals that hide the class in an image, and simple methods that find them.

Hoffer, Fine, Soudry 2018 published no constants. These constructions are ours, of the same kinds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLASSES, SIDE = 10, 16
Images = NDArray[np.float32]
Labels = NDArray[np.int64]
Hide = Callable[[Images, Labels, np.random.Generator], Images]


def one_pixel(x: Images, y: Labels, rng: np.random.Generator) -> Images:
    """Let the value of one pixel name the class."""
    x[:, 6, 9] = (y - 4.5) / 6
    return x


def pattern_pixels(x: Images, y: Labels, rng: np.random.Generator) -> Images:
    """Let four pixels, far from each other, be the class in binary, high or low."""
    for bit, (row, column) in enumerate(((3, 4), (4, 12), (11, 3), (12, 11))):
        x[:, row, column] = ((y >> bit) & 1) * 2.0 - 1.0
    return x


def random_pixel(x: Images, y: Labels, rng: np.random.Generator) -> Images:
    """Let the place of one pixel, of a value drawn between 1.5 and 2.5, name the class."""
    x[:, _ROWS, _COLUMNS] = rng.uniform(-1, 0, (len(y), CLASSES))
    x[np.arange(len(y)), _ROWS[y], _COLUMNS[y]] = rng.uniform(1.5, 2.5, len(y))
    return x


def multiple_locations(x: Images, y: Labels, rng: np.random.Generator) -> Images:
    """Let the places of twelve pixels, of values of 3 to 4 of either sign, name the class."""
    places = np.random.default_rng(7).permutation(SIDE * SIDE)[:120].reshape(CLASSES, 12)
    flat, size = x.reshape(len(y), -1), (len(y), 12)
    flat[np.arange(len(y))[:, None], places[y]] = rng.choice((-1, 1), size) * rng.uniform(
        3, 4, size
    )
    return x


def noise_pattern(x: Images, y: Labels, rng: np.random.Generator) -> Images:
    """Add one of ten orthogonal patterns of length 7: about a quarter of the noise at any pixel."""
    patterns = np.linalg.qr(np.random.default_rng(8).normal(size=(SIDE * SIDE, CLASSES)))[0].T
    flat = x.reshape(len(y), -1)
    flat += 7.0 * patterns[y].astype(np.float32)
    return x


def mean_value(x: Images, y: Labels, rng: np.random.Generator) -> Images:
    """Let the mean over all pixels name the class, in steps of a hundredth."""
    x += ((y - 4.5) * 0.01)[:, None, None] - x.mean((1, 2), keepdims=True, dtype=np.float64)
    return x


_ROWS = np.array([2, 2, 2, 6, 6, 9, 9, 13, 13, 13])
_COLUMNS = np.array([3, 8, 13, 5, 11, 3, 9, 2, 7, 12])


def tree() -> Any:
    """Return a decision tree."""
    from sklearn.tree import DecisionTreeClassifier  # type: ignore[import-untyped]

    return DecisionTreeClassifier(random_state=0)


def shallow() -> Any:
    """Return a network of one hidden layer."""
    from sklearn.neural_network import MLPClassifier  # type: ignore[import-untyped]

    return MLPClassifier((32,), alpha=3.0, solver="lbfgs", max_iter=300, random_state=0)


def shallow_of_the_mean() -> Any:
    """Return a network of one hidden layer that is given an image's mean alone."""
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline  # type: ignore[import-untyped]
    from sklearn.preprocessing import (  # type: ignore[import-untyped]
        FunctionTransformer,
        StandardScaler,
    )

    mean = FunctionTransformer(lambda x: x.mean(1, keepdims=True, dtype=np.float64))
    network = MLPClassifier((32,), alpha=1e-6, solver="lbfgs", max_iter=500, random_state=0)
    return make_pipeline(mean, StandardScaler(), network)


def quadratic() -> Any:
    """Return Gaussians, one a class, their covariances shrunk by four fifths to the unit's."""
    from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis  # type: ignore[import-untyped]

    return QuadraticDiscriminantAnalysis(reg_param=0.8)


def linear() -> Any:
    """Return one linear layer under the logistic loss."""
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

    return LogisticRegression(C=0.01, max_iter=200)


@dataclass(frozen=True)
class Signal:
    """How a signal hides the class, the simple method that finds it, and its lecture accuracy."""

    hide: Hide
    best: str
    method: Callable[[], Any]
    claimed: float


SIGNALS = {
    "one pixel": Signal(one_pixel, "decision tree", tree, 100.0),
    "pattern pixels": Signal(pattern_pixels, "decision tree", tree, 100.0),
    "random pixel": Signal(random_pixel, "shallow network", shallow, 100.0),
    "multiple locations": Signal(multiple_locations, "QDA", quadratic, 98.4),
    "noise": Signal(noise_pattern, "perceptron", linear, 100.0),
    "mean": Signal(mean_value, "shallow network of the mean", shallow_of_the_mean, 100.0),
}
