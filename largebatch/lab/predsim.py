"""Local error signals: every layer learns from a similarity to the labels and a prediction of them.

Noekland and Eidnes 2019, "Training neural networks with local error signals", equations 1 to 4. The
gradient of a layer's loss stops at the layer's input.
"""

from __future__ import annotations

from itertools import pairwise
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, one_hot, relu

from largebatch.lab.descent import accuracy, fit
from largebatch.lab.digits import CLASSES, Samples, digits
from largebatch.lab.experiment import Check, Experiment, Findings, Scale, experiments, spread
from largebatch.lab.networks import seeded
from largebatch.lab.paired import exceeds
from largebatch.lab.pictures import Series, lines

BETA = 0.99  # of the similarity in predsim
WEIGHTS = {"pred": 0.0, "sim": 1.0, "predsim": BETA}
PRINTED = {"global": 0.75, "pred": 0.68, "sim": 0.80, "predsim": 0.62}  # MNIST, % wrong
WIDTHS = (64, 128, 128, 128)
BATCH, RATE = 64, 3e-3


def similarities(x: Tensor) -> Tensor:
    """Return the cosines between all rows (n, d), each less its own mean: (n, n)."""
    rows = normalize(x.flatten(1) - x.flatten(1).mean(1, keepdim=True))
    return rows @ rows.T


class LocalLayer(nn.Module):
    """A layer with ReLU, and the two linear maps that its losses are taken of."""

    def __init__(self, features: int, out: int) -> None:
        super().__init__()
        self.layer = nn.Linear(features, out)
        self.predict, self.liken = nn.Linear(out, CLASSES), nn.Linear(out, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.layer(x))

    def loss(self, h: Tensor, targets: Tensor, beta: float) -> Tensor:
        """Return (1 - beta) x cross entropy + beta x mean squared error of the similarities."""
        labels = one_hot(targets, CLASSES).to(h.dtype)
        apart = (similarities(self.liken(h)) - similarities(labels)).square().mean()
        return (1 - beta) * cross_entropy(self.predict(h), targets) + beta * apart


def wrong(train: Samples, val: Samples, way: str, seed: int, epochs: int) -> float:
    """Return the held-out error of a perceptron whose hidden layers learn ``way``."""
    with seeded(seed):
        layers = [LocalLayer(*pair) for pair in pairwise(WIDTHS)]
        last = nn.Linear(WIDTHS[-1], CLASSES)

    def states(images: Tensor) -> list[Tensor]:
        found = [images.flatten(1)]
        for layer in (*layers, last):
            found.append(layer(found[-1] if way == "global" else found[-1].detach()))
        return found[1:]

    def loss(found: list[Tensor], targets: Tensor) -> Tensor:
        total = cross_entropy(found[-1], targets)
        if way != "global":
            for layer, h in zip(layers, found, strict=False):
                total = total + layer.loss(h, targets, WEIGHTS[way])
        return total

    optimizer = torch.optim.Adam(nn.ModuleList([*layers, last]).parameters(), lr=RATE)
    steps = epochs * (len(train[1]) // BATCH)
    fit(states, train, optimizer, BATCH, steps, seed, loss, lambda done: 1 - done)
    return 1 - accuracy(lambda images: states(images)[-1], val)


def identities() -> list[Check]:
    """Return what holds of the loss whatever the data."""
    torch.manual_seed(0)
    layer, h = LocalLayer(8, 6).double(), torch.randn(12, 6, dtype=torch.float64)
    targets = torch.arange(12) % CLASSES
    pred, sim, both = (layer.loss(h, targets, beta) for beta in (0.0, 1.0, BETA))
    off = float((both - (1 - BETA) * pred - BETA * sim).abs().detach())
    labels = similarities(one_hot(targets, CLASSES).double())
    same, other = float(labels[0, 10]), float(labels[0, 1])
    scaled = float((similarities(3 * h) - similarities(h)).abs().max())
    return [
        Check("predsim less (1 - beta) pred + beta sim", "0", f"{off:.1e}", off < 1e-12, True),
        Check("similarity of labels, of one class and of two", "1 and -1/9",
              f"{same:.6f} and {other:.6f}",
              abs(same - 1) < 1e-12 and abs(other + 1 / 9) < 1e-12, True),
        Check("change of similarities when the features are tripled", "0", f"{scaled:.1e}",
              scaled < 1e-12, True),
    ]  # fmt: skip


@experiments.register("predsim")
class LocalErrorSignals(Experiment):
    """A perceptron of three hidden layers on digits: global loss, pred, sim, predsim."""

    lecture = "Training in practice (lecture 3), optional: Local Parallel Learning"
    claim = "Recently shown to yield strong results without end-to-end learning"
    source = "Noekland and Eidnes 2019; MNIST errors .75 global, .68 pred, .80 sim, .62 predsim"
    minutes = 1.0
    seeds = 5

    def measure(self, scale: Scale) -> Findings:
        """Compare the errors' order with the paper's, seed by seed."""
        sets, epochs = (digits("train"), digits("val")), scale.pick(4, 25)
        errors = {way: [wrong(*sets, way, s, epochs) for s in scale.seeds] for way in PRINTED}
        checks = identities()
        for better, worse in (("predsim", "global"), ("predsim", "sim"), ("predsim", "pred")):
            checks.append(
                Check(f"held-out error: {better} below {worse}",
                      f"{PRINTED[better]} < {PRINTED[worse]}% (MNIST)",
                      f"{spread([100 * e for e in errors[better]])}"
                      f" against {spread([100 * e for e in errors[worse]])}%",
                      exceeds(errors[worse], errors[better]))
            )  # fmt: skip
        rows: list[dict[str, Any]] = [
            {"seed": seed, **{way: round(errors[way][n], 4) for way in errors}}
            for n, seed in enumerate(scale.seeds)
        ]
        rows.append({"seed": "mean", **{way: round(fmean(e), 4) for way, e in errors.items()}})
        points = [Series(way, list(scale.seeds), e, mode="markers") for way, e in errors.items()]
        picture = lines("seed", "held-out error", points, percent=True)
        note = "the same seed has the same first weights and order in all four"
        return Findings(checks, rows, [("Error of four ways to learn", note, picture)])
