"""Train a perceptron with weight decay and record measurements along the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.lab.decay_as_rate import hidden
from largebatch.lab.descent import accuracy, descend
from largebatch.lab.digits import digits
from largebatch.lab.networks import perceptron
from largebatch.optim import SGD

WIDTHS = (64, 64, 64, 10)
RATE, MOMENTUM, BATCH, EVERY = 0.05, 0.9, 64, 15


@dataclass
class Path:
    """The measurements along a training.

    Attributes:
        rate: rate / |w|^2 of the hidden layers.
        jacobian: norm of the Jacobian of logits by pixels, mean over images.
        loss: loss of each step.
        train, held: accuracy at the end.
    """

    rate: list[float] = field(default_factory=list)
    jacobian: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    train: float = 0.0
    held: float = 0.0

    def at_end(self, what: str) -> float:
        """Return a figure at the end; for the loss, the mean over an epoch."""
        path: list[float] = getattr(self, what)
        return fmean(path[-22:]) if what == "loss" else path[-1]


def jacobian(model: nn.Module, images: Tensor) -> float:
    """Return the mean norm of the derivatives of an image's logits, in evaluation mode."""
    x, total = images.clone().requires_grad_(), torch.zeros(len(images))
    model.eval()
    for column in model(x).unbind(1):
        (slope,) = torch.autograd.grad(column.sum(), x, retain_graph=True)
        total += slope.flatten(1).square().sum(1)
    model.train()
    return float(total.sqrt().mean())


def walk(norm: bool, decay: float, seed: int, steps: int) -> Path:
    """Train a perceptron with decay on its weight matrices."""
    samples, held, path = digits("train"), digits("val"), Path()
    model = perceptron(WIDTHS, seed, norm)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if (p.dim() > 1) == decays], "weight_decay": d}
        for decays, d in ((True, decay), (False, 0.0))
    ]
    optimizer = SGD(groups, RATE, MOMENTUM)
    for number, loss in enumerate(descend(model, samples, optimizer, BATCH, steps, seed)):
        path.loss.append(loss)
        if number % EVERY == 0 or number == steps - 1:
            squares = sum(float(layer.weight.detach().square().sum()) for layer in hidden(model))
            path.rate.append(RATE / squares * len(hidden(model)))
            path.jacobian.append(jacobian(model, held[0][:64]))
    model.eval()
    path.train, path.held = accuracy(model, samples), accuracy(model, held)
    return path
