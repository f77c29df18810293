"""A perceptron whose errors are sent back by chosen matrices, backpropagation's or others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from largebatch.lab.descent import accuracy, batches
from largebatch.lab.digits import CLASSES, digits
from largebatch.optim import SGD

WIDTHS = (64, 96, 96, CLASSES)
BATCH, RATE = 64, 0.1


@dataclass
class Perceptron:
    """Layers x <- rho(W x), the last without rho, under softmax and cross entropy.

    Attributes:
        weights: (out, in) of each layer.
        linear: whether rho is the identity; else it is tanh.
    """

    weights: list[Tensor]
    linear: bool = False

    @staticmethod
    def drawn(seed: int, widths: Sequence[int] = WIDTHS, linear: bool = False) -> Perceptron:
        """Draw the weights from N(0, 1 / in), in float64."""
        return Perceptron(gaussians(seed, zip(widths[1:], widths[:-1], strict=True)), linear)

    def states(self, images: Tensor) -> list[Tensor]:
        """Return the input of every layer, and the outputs at the end."""
        states = [images.flatten(1)]
        for number, weight in enumerate(self.weights):
            z = states[-1] @ weight.T
            last = number == len(self.weights) - 1
            states.append(z if last or self.linear else z.tanh())
        return states

    def __call__(self, images: Tensor) -> Tensor:
        """Return the outputs."""
        return self.states(images)[-1]

    def gradients(
        self, images: Tensor, targets: Tensor, feedback: Sequence[Tensor], direct: bool = False
    ) -> list[Tensor]:
        """Return the update direction of each weight.

        Args:
            feedback: for each hidden layer the matrix that brings errors to it: from the layer
                above, (out, in) as that layer's weight, which itself makes it backpropagation; or,
                if ``direct``, from the outputs, (classes, width).
        """
        states = self.states(images)
        error = (states[-1].softmax(1) - one_hot(targets, CLASSES)) / len(targets)
        v, found = error, [error.T @ states[-2]]
        for below in range(len(self.weights) - 2, -1, -1):
            v = (error if direct else v) @ feedback[below]
            if not self.linear:
                v = v * (1 - states[below + 1].square())
            found.insert(0, v.T @ states[below])
        return found

    def backpropagated(self, images: Tensor, targets: Tensor) -> list[Tensor]:
        """Return the gradient of the loss."""
        return self.gradients(images, targets, self.weights[1:])


def gaussians(seed: int, shapes: Sequence[tuple[int, int]] | zip[tuple[int, int]]) -> list[Tensor]:
    """Return float64 matrices (out, in) from N(0, 1 / in)."""
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [matrix / matrix.shape[1] ** 0.5 for matrix in drawn]


def angle(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Return the angle between two lists of tensors, taken as vectors, in degrees."""
    a, b = (torch.cat([t.flatten() for t in each]) for each in (ours, theirs))
    return float(torch.rad2deg(torch.acos((a @ b / (a.norm() * b.norm())).clamp(-1, 1))))


def learn(
    seed: int,
    epochs: int,
    feedback: Sequence[Tensor] | None,
    direct: bool = False,
    hidden: bool = True,
) -> tuple[float, list[float]]:
    """Train; return held-out accuracy, and each epoch's angle between what the hidden layers
    descend and their gradient, on the first 256 digits.

    Args:
        feedback: None for backpropagation. hidden: whether the hidden layers learn at all.
    """
    network = Perceptron.drawn(seed)
    train, val = digits("train", torch.float64), digits("val", torch.float64)
    probe, each = (train[0][:256], train[1][:256]), len(train[1]) // BATCH
    optimizer = SGD(network.weights if hidden else network.weights[-1:], lr=RATE, momentum=0.9)
    angles: list[float] = []

    def measure() -> None:
        taken = network.gradients(*probe, feedback or network.weights[1:], direct)
        angles.append(angle(taken[:-1], network.backpropagated(*probe)[:-1]))

    for number, (images, targets) in enumerate(batches(train, BATCH, epochs * each, seed)):
        if number % each == 0:
            measure()
        taken = network.gradients(images, targets, feedback or network.weights[1:], direct)
        for weight, gradient in zip(network.weights, taken, strict=True):
            weight.grad = gradient
        optimizer.step()
    measure()
    return accuracy(network, val), angles
