"""Alternating minimisation: codes and weights in turn, with no gradient through the network.

Choromanska et al. 2019, "Beyond backprop: online alternating minimization with auxiliary
variables". :mod:`largebatch.lab.codes` defines the blocks and their updates.
"""

from __future__ import annotations

from itertools import pairwise

import torch

from largebatch.lab.codes import Network, sweep, take
from largebatch.lab.descent import accuracy, batches, fit
from largebatch.lab.digits import Samples, digits
from largebatch.lab.experiment import Check, Experiment, Findings, Scale, experiments, spread
from largebatch.lab.paired import exceeds
from largebatch.lab.pictures import lines, over_seeds
from largebatch.optim import SGD

BATCH = 100
NEAR = 0.01  # of accuracy


@experiments.register("altmin")
class AlternatingMinimisation(Experiment):
    """Whole data block by block, then online over digits, beside SGD with momentum."""

    lecture = "Training in practice (lecture 3), optional: ADMM, Beyond Backprop"
    claim = "Alternate between codes and weights: online, without backpropagation"
    source = "Choromanska et al. 2019, algorithms 1 to 3"
    minutes = 1.0
    seeds = 5

    def measure(self, scale: Scale) -> Findings:
        """Watch f over the blocks, and compare accuracies after as many passes over the data."""
        train, val = digits("train", torch.float64), digits("val", torch.float64)
        some, epochs = (train[0][:300], train[1][:300]), scale.pick(2, 15)
        curves, rises = [], []
        for seed in scale.seeds:
            network = Network.drawn(seed)
            codes = network.codes(some[0])
            curve = [float(network.objective(*some, codes))]
            for _ in range(scale.pick(3, 10)):
                for _ in sweep(network, *some, codes):
                    curve.append(float(network.objective(*some, codes)))
            curves.append(curve)
            rises.append(max(b - a for a, b in pairwise(curve)) / curve[0])
        ours = [online(train, val, seed, epochs) for seed in scale.seeds]
        theirs = [by_sgd(train, val, seed, epochs) for seed in scale.seeds]
        begins, ends = ([curve[place] for curve in curves] for place in (0, -1))
        checks = [
            Check("largest rise of f over a block, as a share of f at the start", "none",
                  f"{max(rises):.1e}", max(rises) < 1e-9, exact=True),
            Check("f after the sweeps over its start", "below 1",
                  spread([b / a for a, b in zip(begins, ends, strict=True)]),
                  max(b / a for a, b in zip(begins, ends, strict=True)) < 1, exact=True),
            Check(f"held-out accuracy after {epochs} passes as good as SGD's, to 1 point", "yes",
                  f"{spread(ours)} against {spread(theirs)}", exceeds(ours, theirs, -NEAR)),
        ]  # fmt: skip
        rows = [
            {"seed": seed, "f at start": round(curve[0], 4), "f at end": round(curve[-1], 4),
             "online": round(a, 4), "SGD": round(b, 4)}
            for seed, curve, a, b in zip(scale.seeds, curves, ours, theirs, strict=True)
        ]  # fmt: skip
        drawn = [over_seeds("f", range(len(curves[0])), curves)]
        picture = lines("blocks", "f", drawn, log="y")
        note = "codes from the last to the first, weights to their least squares, the classifier"
        return Findings(checks, rows, [("Objective block by block", note, picture)])


def online(train: Samples, val: Samples, seed: int, epochs: int) -> float:
    """Return the held-out accuracy that batches of codes and weights in turn have come to."""
    network = Network.drawn(seed)
    for images, targets in batches(train, BATCH, epochs * (len(train[1]) // BATCH), seed):
        take(network, images, targets)
    return accuracy(network, val)


def by_sgd(train: Samples, val: Samples, seed: int, epochs: int) -> float:
    """Return that of SGD with momentum from the same weights, over the same batches."""
    network = Network.drawn(seed)
    weights = [w.requires_grad_() for w in (*network.weights, network.classifier)]
    optimizer, steps = SGD(weights, lr=0.05, momentum=0.9), epochs * (len(train[1]) // BATCH)
    fit(network, train, optimizer, BATCH, steps, seed, schedule=lambda done: 1 - done)
    return accuracy(network, val)
