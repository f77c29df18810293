"""Loss and gradient around the steps of a training, with batch norm and without."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from largebatch.lab.descent import descend, fit
from largebatch.lab.digits import Samples, digits
from largebatch.lab.networks import perceptron
from largebatch.optim import SGD

WIDTHS = (64, *[64] * 6, 10)
RATE, BATCH, EVERY = 0.1, 64, 4
REACHES = (0.5, 1.0, 2.0, 4.0)  # steps along the gradient, in steps of the training
LADDER = [0.01 * 2**n for n in range(13)]


@dataclass
class Path:
    """The measurements at some steps of a training.

    Attributes:
        loss: range of the loss along the gradient.
        gradient: largest change of the gradient along it.
        smoothness: the largest ratio of the gradient's change to that of the weights.
        shift: relative change of the middle layer's gradient when the layers below have stepped.
    """

    loss: list[float] = field(default_factory=list)
    gradient: list[float] = field(default_factory=list)
    smoothness: list[float] = field(default_factory=list)
    shift: list[float] = field(default_factory=list)


def drawn(norm: bool, seed: int) -> nn.Sequential:
    """Return the network under Kaiming's rule, so that it learns without a norm too."""
    return perceptron(WIDTHS, seed, norm, rule="kaiming")


def gradient(model: nn.Module, samples: Samples) -> tuple[float, list[Tensor]]:
    """Return the loss of a batch and its gradient."""
    loss = cross_entropy(model(samples[0]), samples[1])
    return float(loss.detach()), list(torch.autograd.grad(loss, list(model.parameters())))


def distance(a: list[Tensor], b: list[Tensor]) -> float:
    """Return the distance of two gradients."""
    return math.sqrt(sum(float((p - q).square().sum()) for p, q in zip(a, b, strict=True)))


def look_around(model: nn.Module, samples: Samples, path: Path) -> None:
    """Measure around the present weights, and restore them."""
    params = [p.data for p in model.parameters()]
    before = [p.clone() for p in params]
    loss, here = gradient(model, samples)
    length = math.sqrt(sum(float(g.square().sum()) for g in here))
    losses, moves, ratios = [loss], [], []
    for reach in REACHES:
        torch._foreach_sub_(params, here, alpha=RATE * reach)
        value, there = gradient(model, samples)
        losses.append(value)
        moves.append(distance(here, there))
        ratios.append(moves[-1] / (RATE * reach * length))
        torch._foreach_copy_(params, before)
    middle = len(params) // 2 - len(params) // 2 % 2
    torch._foreach_sub_(params[:middle], here[:middle], alpha=RATE)
    moved = gradient(model, samples)[1][middle]
    torch._foreach_copy_(params, before)
    path.loss.append(max(losses) - min(losses))
    path.gradient.append(max(moves))
    path.smoothness.append(max(ratios))
    path.shift.append(float((moved - here[middle]).norm() / here[middle].norm()))


def walk(norm: bool, seed: int, steps: int) -> Path:
    """Train, and look around every few steps."""
    model, samples, path = drawn(norm, seed), digits("train"), Path()
    batch = samples[0][:256], samples[1][:256]
    training = descend(model, samples, SGD(model.parameters(), RATE), BATCH, steps, seed)
    for number, _ in enumerate(training):
        if number % EVERY == 0:
            look_around(model, batch, path)
    return path


def largest_rate(norm: bool, seed: int, steps: int) -> float:
    """Return the largest rate up to which every rate's loss ends below its start."""
    samples, largest = digits("train"), 0.0
    for rate in LADDER:
        model = drawn(norm, seed)
        losses = fit(model, samples, SGD(model.parameters(), rate), BATCH, steps, seed)
        if not sum(losses[-5:]) / 5 < losses[0]:
            break
        largest = rate
    return largest
