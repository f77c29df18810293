"""Alternating minimisation: codes and weights in turn, with no gradient through the network.

Choromanska et al. 2019, "Beyond backprop: online alternating minimization with auxiliary
variables": every layer's activation c is a variable of its own, tied to the layer below by a
penalty

    f(W, C) = sum L(y, relu(c^L), V) + mu sum_l |c^l - W^l relu(c^(l-1))|^2

Over whole data a weight's block is a least-squares problem; online it is one over memories A, B of
all codes so far (Mairal et al. 2009), descended column by column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from largebatch.lab.digits import CLASSES, Digits, descend
from largebatch.lab.experiment import Check, Experiment, Findings, Scale, experiments, spread
from largebatch.lab.paired import exceeds
from largebatch.lab.pictures import lines, over_seeds

WIDTHS = (64, 48, 48)
MU = 0.1  # of the penalty
DESCENTS = 5  # steps of a block that has no closed form
BATCH = 100
FORGET = 0.9  # factor of the memories a batch
NEAR = 0.01  # of accuracy


@dataclass
class Network:
    """Weights W^1..W^L, which give the codes, and V, which gives the outputs.

    Attributes:
        memory: of each W the sums A of a a' and B of c a', over what has been seen.
    """

    weights: list[Tensor]
    classifier: Tensor
    memory: list[tuple[Tensor, Tensor]]

    @staticmethod
    def drawn(seed: int) -> Network:
        """Draw the weights from N(0, 2 / in), in float64."""
        generator = torch.Generator().manual_seed(seed)

        def draw(out: int, into: int) -> Tensor:
            matrix = torch.randn(out, into, generator=generator, dtype=torch.float64)
            return matrix * (2 / into) ** 0.5

        weights = [draw(out, into) for into, out in pairwise(WIDTHS)]
        units = [1e-3 * torch.eye(w.shape[1], dtype=w.dtype) for w in weights]
        memory = [(unit, w @ unit) for w, unit in zip(weights, units, strict=True)]
        return Network(weights, draw(CLASSES, WIDTHS[-1]), memory)

    def codes(self, images: Tensor) -> list[Tensor]:
        """Return c^1..c^L of a pass forward, (n, width) each, for which the penalty is 0."""
        a, found = images.flatten(1), []
        for weight in self.weights:
            found.append(a @ weight.T)
            a = found[-1].relu()
        return found

    def __call__(self, images: Tensor) -> Tensor:
        """Return the outputs."""
        return self.codes(images)[-1].relu() @ self.classifier.T

    def objective(self, images: Tensor, targets: Tensor, codes: list[Tensor]) -> Tensor:
        """Return f, the mean over samples."""
        a, penalty = images.flatten(1), torch.zeros((), dtype=torch.float64)
        for weight, code in zip(self.weights, codes, strict=True):
            penalty = penalty + (code - a @ weight.T).square().sum() / len(targets)
            a = code.relu()
        return cross_entropy(a @ self.classifier.T, targets) + MU * penalty


def lowered(value: Tensor, f: Callable[[Tensor], Tensor], rate: float) -> Tensor:
    """Descend f of one block; a step that does not lower f is halved, at last not taken."""
    for _ in range(DESCENTS):
        value = value.detach().requires_grad_()
        before = f(value)
        (gradient,) = torch.autograd.grad(before, value)
        with torch.no_grad():
            for _ in range(20):
                moved = value - rate * gradient
                if f(moved) <= before:
                    value, rate = moved, rate * 2
                    break
                rate /= 2
    return value.detach()


def move_codes(
    network: Network, images: Tensor, targets: Tensor, codes: list[Tensor]
) -> Iterator[None]:
    """Lower f over each code in turn, the last first; yield after each."""
    for number in reversed(range(len(codes))):

        def f(code: Tensor, n: int = number) -> Tensor:
            return network.objective(images, targets, [*codes[:n], code, *codes[n + 1 :]])

        codes[number] = lowered(codes[number], f, float(len(targets)))
        yield


def move_classifier(network: Network, targets: Tensor, codes: list[Tensor]) -> None:
    """Lower the loss over V."""
    a = codes[-1].relu()
    network.classifier = lowered(network.classifier, lambda v: cross_entropy(a @ v.T, targets), 1.0)


def sweep(network: Network, images: Tensor, targets: Tensor, codes: list[Tensor]) -> Iterator[None]:
    """Move every block once over all data, weights to their least squares; yield after each."""
    yield from move_codes(network, images, targets, codes)
    a = images.flatten(1)
    for number, code in enumerate(codes):
        network.weights[number] = torch.linalg.lstsq(a, code, driver="gelsd").solution.T
        a = code.relu()
        yield
    move_classifier(network, targets, codes)
    yield


def take(network: Network, images: Tensor, targets: Tensor) -> None:
    """Learn from a batch online: encode, move the codes, then each weight column by column."""
    codes = network.codes(images)
    for _ in move_codes(network, images, targets, codes):
        pass
    a = images.flatten(1)
    for weight, code, (squares, products) in zip(
        network.weights, codes, network.memory, strict=True
    ):
        squares.mul_(FORGET).addmm_(a.T, a)
        products.mul_(FORGET).addmm_(code.T, a)
        for j in range(weight.shape[1]):
            # The exact minimum over column j of sum |c - W a|^2 of what is remembered.
            weight[:, j] += (products[:, j] - weight @ squares[:, j]) / squares[j, j]
        a = code.relu()
    move_classifier(network, targets, codes)


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
        digits, epochs = Digits.load(torch.float64), scale.pick(2, 15)
        curves, rises = [], []
        for seed in scale.seeds:
            network = Network.drawn(seed)
            some = digits.images[:300], digits.targets[:300]
            codes = network.codes(some[0])
            curve = [float(network.objective(*some, codes))]
            for _ in range(scale.pick(3, 10)):
                for _ in sweep(network, *some, codes):
                    curve.append(float(network.objective(*some, codes)))
            curves.append(curve)
            rises.append(max(b - a for a, b in pairwise(curve)) / curve[0])
        ours = [online(digits, seed, epochs) for seed in scale.seeds]
        theirs = [by_sgd(digits, seed, epochs) for seed in scale.seeds]
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


def online(digits: Digits, seed: int, epochs: int) -> float:
    """Return the held-out accuracy that batches of codes and weights in turn have come to."""
    network = Network.drawn(seed)
    for images, targets in digits.batches(seed, BATCH, epochs):
        take(network, images, targets)
    return digits.accuracy(network)


def by_sgd(digits: Digits, seed: int, epochs: int) -> float:
    """Return that of SGD with momentum from the same weights, over the same batches."""
    network = Network.drawn(seed)
    weights = [w.requires_grad_() for w in (*network.weights, network.classifier)]
    batches = digits.batches(seed, BATCH, epochs)
    descend(weights, batches, lambda x, y: cross_entropy(network(x), y), 0.05)
    return digits.accuracy(network)
