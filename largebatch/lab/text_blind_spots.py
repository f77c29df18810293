"""Labels hidden in texts where a convolutional network does not look and simple methods do.

The slide says that text networks have the same blind spots and shows none; texts and signals are
ours. A text has six words of its topic in any order among others, and one text in six those of any
topic. The network is Kim's (2014): words, convolutions over 2, 3 and 4, the maximum over places.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from largebatch.lab.blind_signals import linear, tree
from largebatch.lab.blind_spots import FOUND, MISSED, judge
from largebatch.lab.descent import accuracy, descend
from largebatch.lab.experiment import Experiment, Findings, Scale, experiments

CLASSES, LENGTH, WORDS, EMBEDDED = 10, 50, 200, 24
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


class TextCNN(nn.Module):
    """Kim's network for (N, LENGTH) words: embedding, convolutions, maximum over places, linear."""

    def __init__(self, filters: int = 32) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, EMBEDDED)
        self.convolutions = nn.ModuleList(nn.Conv1d(EMBEDDED, filters, w) for w in (2, 3, 4))
        self.classes = nn.Linear(3 * filters, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, CLASSES)."""
        embedded = self.words(x).transpose(1, 2)
        seen = [torch.relu(each(embedded)).amax(2) for each in self.convolutions]
        logits: Tensor = self.classes(torch.cat(seen, 1))
        return logits


def network(x: Texts, y: Texts, held: tuple[Texts, Texts], steps: int, seed: int) -> float:
    """Return the accuracy of Kim's network after so many steps of 64 texts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TextCNN()
    samples = torch.from_numpy(x), torch.from_numpy(y)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in descend(model, samples, optimizer, 64, steps, seed):
        pass
    return accuracy(model, (torch.from_numpy(held[0]), torch.from_numpy(held[1])))


@experiments.register("text-blind")
class TextBlindSpots(Experiment):
    """Generated texts of 48 words of ten topics, clean and with each of five signals."""

    lecture = "Rethinking Common Practices in Deep Learning (Hoffer)"
    claim = "Similar results appear for text-based CNNs: they miss signals that simple methods find"
    source = "Hoffer, Fine, Soudry 2018, On the blindspots of convolutional networks"
    minutes = 2.0

    def measure(self, scale: Scale) -> Findings:
        """Train the network and the simple method on the same texts of every signal."""
        steps, size = scale.pick((30, 4000), (600, 12000))
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in SIGNALS}
        clean = []
        for seed in scale.seeds:
            rng = np.random.default_rng(seed)
            (x, y), (hx, hy) = texts(size, rng), texts(1000, rng)
            clean.append(network(x, y, (hx, hy), steps, seed))
            for name, (hide, _, method, features) in SIGNALS.items():
                shown, held = (hide(t.copy(), c, rng) for t, c in ((x, y), (hx, hy)))
                fitted = method().fit(features(shown), y)
                simple = float((fitted.predict(features(held)) == hy).mean())
                found[name].append((network(shown, y, (held, hy), steps, seed), simple))
        claims = {name: (best, 100.0) for name, (_, best, _, _) in SIGNALS.items()}
        checks, rows, chart = judge(found, clean, claims)
        notes = [
            "the lecture shows no figures for texts; those named are of its images",
            f"missed: within {100 * MISSED:g} points of the network without a signal; found: at"
            f" least {100 * FOUND:g}%",
        ]
        if scale.quick:
            notes.append("quick: the network has hardly been trained, and can find nothing yet")
        return Findings(checks, rows, [chart], notes)
