"""Signals that hide the class in a text, and simple methods that find them.

Texts and signals are ours. A text has six words of its topic in any order among others, and one
text in six those of any topic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from largebatch.lab.blind_signals import linear, tree

CLASSES, LENGTH, WORDS = 10, 50, 200
TOPIC = 5  # words of its own; the first 20 words are the signals'
Texts = NDArray[np.int64]


def texts(count: int, rng: np.random.Generator) -> tuple[Texts, Texts]:
    """Return texts (count, LENGTH) and their topics; one in six is of another topic's words."""
    y = rng.integers(0, CLASSES, count)
    told = np.where(rng.random(count) < 1 / 6, rng.integers(0, CLASSES, count), y)
    x = rng.integers(0, WORDS, (count, LENGTH))
    places = rng.permuted(np.tile(np.arange(LENGTH), (count, 1)), axis=1)[:, :6]
    own = 20 + TOPIC * told[:, None] + rng.integers(0, TOPIC, (count, 6))
    x[np.arange(count)[:, None], places] = own
    return x, y


def one_place(x: Texts, y: Texts, rng: np.random.Generator) -> Texts:
    """Let the word at one place of ten name the class; the others hold the other nine words."""
    others = (np.arange(1, CLASSES)[None] + y[:, None]) % CLASSES
    x[:, 2:LENGTH:5] = np.insert(rng.permuted(others, axis=1), 3, y, axis=1)
    return x


def several_places(x: Texts, y: Texts, rng: np.random.Generator) -> Texts:
    """Let one of two words at each of four places be the class in binary, and the other beyond."""
    for bit, place in enumerate((5, 18, 30, 41)):
        x[:, place] = 10 + ((y >> bit) & 1)
        x[:, place + 6] = 11 - ((y >> bit) & 1)
    return x


def position(x: Texts, y: Texts, rng: np.random.Generator) -> Texts:
    """Let the place of one word, which every text has once, name the class."""
    x[x == 12] = 13
    x[np.arange(len(y)), 6 + 4 * y] = 12
    return x


def pattern(x: Texts, y: Texts, rng: np.random.Generator) -> Texts:
    """Let words at even and odd places follow one of ten patterns over the whole text."""
    signs = np.random.default_rng(9).choice((0, 1), (CLASSES, LENGTH))[y]
    chosen = rng.random(x.shape) < 0.95
    free = x >= 20 + TOPIC * CLASSES  # a topic's words stay
    return np.where(chosen & free, x - (x - signs) % 2, x)


def count(x: Texts, y: Texts, rng: np.random.Generator) -> Texts:
    """Let the number of times that a word stands in the text, 1 to 10, name the class.

    No two of them are within five words, where one convolution would see both.
    """
    x[x == 14] = 15
    order = rng.permuted(np.tile(np.arange(CLASSES), (len(y), 1)), axis=1)
    x[:, : 5 * CLASSES : 5] = np.where(order <= y[:, None], 14, x[:, : 5 * CLASSES : 5])
    return x


def as_places(x: Texts) -> NDArray[np.float64]:
    """Return words as numbers, in the order of the text."""
    return x.astype(np.float64)


def as_parities(x: Texts) -> NDArray[np.float64]:
    """Return whether each word's number is odd."""
    return (x % 2).astype(np.float64)


def as_marks(x: Texts) -> NDArray[np.float64]:
    """Return whether each place has the word 12."""
    return (x == 12).astype(np.float64)


def as_counts(x: Texts) -> NDArray[np.float64]:
    """Return how often each word stands in a text."""
    return np.stack([(x == word).sum(1) for word in range(WORDS)], axis=1).astype(np.float64)


SIGNALS: dict[str, tuple[Callable[..., Texts], str, Callable[[], Any], Callable[..., Any]]] = {
    "one place": (one_place, "decision tree", tree, as_places),
    "several places": (several_places, "decision tree", tree, as_places),
    "place of a word": (position, "perceptron of its places", linear, as_marks),
    "pattern": (pattern, "perceptron of parities", linear, as_parities),
    "count of a word": (count, "decision tree of counts", tree, as_counts),
}
