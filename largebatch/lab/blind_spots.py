"""Blind spots: labels hidden in images that simple methods find and a convolutional network misses.

Hoffer, Fine, Soudry 2018, "On the blindspots of convolutional networks". Their constants were not
published; the constructions here are ours, each of a kind named on the slide. Images are noisy
digits, on which the network errs often enough to show whether a signal is found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from largebatch.data.source import Split
from largebatch.lab.blind_signals import CLASSES, SIDE, SIGNALS, Images, Labels
from largebatch.lab.descent import accuracy, fit
from largebatch.lab.digits import digits
from largebatch.lab.experiment import (
    Check,
    Drawing,
    Experiment,
    Findings,
    Scale,
    agreed,
    experiments,
    spread,
)
from largebatch.lab.networks import seeded
from largebatch.lab.pictures import Series, lines
from largebatch.models.digits_cnn import digits_cnn
from largebatch.optim import SGD

NOISE = 1.6  # standard deviation, of images of variance 1
MISSED, FOUND = 0.03, 0.98


def noisy(split: Split, copies: int, rng: np.random.Generator) -> tuple[Images, Labels]:
    """Return digits of 16x16 pixels with fresh noise on every copy."""
    images, labels = digits(split)
    large = interpolate(images, scale_factor=2.0)[:, 0].numpy().repeat(copies, 0)
    noise = rng.normal(0, NOISE, large.shape).astype(np.float32)
    return large + noise, labels.numpy().repeat(copies)


def cnn(x: Images, y: Labels, held: tuple[Images, Labels], epochs: float, seed: int) -> float:
    """Return the accuracy of `digits_cnn` after so many epochs."""
    with seeded(seed):
        model = digits_cnn(CLASSES, (1, SIDE, SIDE))
    samples, steps = _tensors(x, y), math.ceil(epochs * len(y) / 64)
    fit(model, samples, SGD(model.parameters(), 0.05, 0.9), 64, steps, seed)
    return accuracy(model.eval(), _tensors(*held))


def judge(
    found: Mapping[str, Sequence[tuple[float, float]]],
    clean: Sequence[float],
    claims: Mapping[str, tuple[str, float]],
) -> tuple[list[Check], list[dict[str, str]], tuple[str, str, Drawing]]:
    """Return a check, a row and a place in the picture for every signal.

    Args:
        found: accuracy of the network and of the simple method, a pair for each seed.
        clean: the network's without a signal, for each seed.
        claims: the simple method's name and its accuracy in the lecture, in %.
    """
    least = min(simple for pairs in found.values() for _, simple in pairs)
    words = f"{100 * FOUND:g} to 100"
    simplest = "least accuracy of the simple methods, %"
    seen, checks = spread([100 * share for share in clean]), list[Check]()
    rows = [{"signal": "none", "network %": seen, "best": "", "best %": ""}]
    for name, pairs in found.items():
        method, claimed = claims[name]
        misses = agreed(
            cnn < without + MISSED and simple >= FOUND
            for (cnn, simple), without in zip(pairs, clean, strict=True)
        )
        ours, simple = (spread([100 * pair[n] for pair in pairs]) for n in (0, 1))
        checks.append(
            Check(
                f"{name}: network against {method}, %",
                f"84.9 (as without a signal) against {claimed:g}",
                f"{ours} (without {seen}) against {simple}",
                misses,
            )
        )
        rows.append({"signal": name, "network %": ours, "best": method, "best %": simple})
    checks.append(Check(simplest, words, f"{100 * least:.2f}", least >= FOUND, True))
    places = list(range(len(found)))
    columns = list(found.values())
    series = [
        Series(who, places, [mean(pair[n] for pair in pairs) for pairs in columns], mode="markers")
        for n, who in ((0, "network"), (1, "simple method"))
    ]
    picture = lines(
        "signal: " + ", ".join(f"{n} {name}" for n, name in enumerate(found)),
        "held-out accuracy",
        series,
        levels={"network without a signal": mean(clean)},
        percent=True,
    )
    return checks, rows, ("Accuracy by signal", "means over the seeds", picture)


def _tensors(x: Images, y: Labels) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(x)[:, None], torch.from_numpy(y)


@experiments.register("blind-5")
class BlindSpots(Experiment):
    """`digits_cnn` on noisy digits of 16x16 pixels, clean and with each of the signals."""

    lecture = "Rethinking Common Practices in Deep Learning (Hoffer)"
    claim = "CNNs completely miss these signals; classic ML models find them easily"
    source = "Hoffer, Fine, Soudry 2018, On the blindspots of convolutional networks"
    minutes = 2.5

    def measure(self, scale: Scale) -> Findings:
        """Train the network and the simple method on the same images of every signal."""
        copies, epochs = scale.pick((3, 0.1), (4, 3.0))
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in SIGNALS}
        clean = []
        for seed in scale.seeds:
            rng = np.random.default_rng(seed)
            (x, y), (hx, hy) = noisy("train", copies, rng), noisy("val", 1, rng)
            clean.append(cnn(x, y, (hx, hy), epochs, seed))
            for name, signal in SIGNALS.items():
                shown, held = (signal.hide(i.copy(), c, rng) for i, c in ((x, y), (hx, hy)))
                method = signal.method().fit(shown.reshape(len(y), -1), y)
                simple = float((method.predict(held.reshape(len(hy), -1)) == hy).mean())
                found[name].append((cnn(shown, y, (held, hy), epochs, seed), simple))
        claims = {name: (signal.best, signal.claimed) for name, signal in SIGNALS.items()}
        checks, rows, chart = judge(found, clean, claims)
        notes = [
            "the constructions are ours, of the kinds that the slide names; amplitudes were chosen"
            " for the simple methods to find the class and for the network to be able not to",
            f"missed: within {100 * MISSED:g} points of the network without a signal; found: at"
            f" least {100 * FOUND:g}%",
            "the last signal's network is given the mean alone: of raw pixels it finds less",
        ]
        if scale.quick:
            notes.append("quick: the network has hardly been trained, and can find nothing yet")
        return Findings(checks, rows, [chart], notes)
