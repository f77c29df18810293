"""Networks whose activations are separate variables (codes), updated in turn with the weights.

Choromanska et al. 2019, section 3: every code c is tied to the layer below by a penalty

    f(W, C) = sum L(y, relu(c^L), V) + mu sum_l |c^l - W^l relu(c^(l-1))|^2

On whole data the update of a weight is a least-squares problem. Online it is a least-squares
problem over memories A, B of all codes so far (Mairal et al. 2009), descended column by column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from largebatch.lab.digits import CLASSES

WIDTHS = (64, 48, 48)
MU = 0.1  # of the penalty
DESCENTS = 5  # steps of a block that has no closed form
FORGET = 0.9  # factor of the memories a batch


@dataclass
class Network:
    """Weights W^1..W^L, which give the codes, and V, which gives the outputs.

    Attributes:
        memory: for each W, the sums A of a a' and B of c a' over all samples seen.
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
        """Return c^1..c^L of a forward pass, (n, width) each, for which the penalty is 0."""
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
    """Take a descent step on one block; a step that does not lower f is halved, then given up."""
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
    """Lower f over each code in turn, from the last to the first; yield after each."""
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
    """Update every block once on all data, weights by least squares; yield after each."""
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
