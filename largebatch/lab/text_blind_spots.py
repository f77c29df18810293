"""Blind spots of text networks: labels hidden in texts that only simple methods find.

The slide says that text networks have the same blind spots and shows none. The network here is
Kim's (2014): words, convolutions over 2, 3 and 4, the maximum over places.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from largebatch.lab.blind_spots import FOUND, MISSED, judge
from largebatch.lab.descent import accuracy, fit
from largebatch.lab.experiment import Experiment, Findings, Scale, experiments
from largebatch.lab.networks import seeded
from largebatch.lab.text_signals import CLASSES, SIGNALS, WORDS, Texts, texts

EMBEDDED = 24


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
    with seeded(seed):
        model = TextCNN()
    samples = torch.from_numpy(x), torch.from_numpy(y)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    fit(model, samples, optimizer, 64, steps, seed)
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
