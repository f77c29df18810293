"""Deep perceptrons at initialisation, their gradients by depth, and the lecture's examples."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from largebatch.lab.descent import fit
from largebatch.lab.digits import Samples, digits
from largebatch.lab.networks import Rule, perceptron, seeded
from largebatch.models.init import initialize
from largebatch.optim import SGD
from largebatch.report.log_fit import straight_line

ACTIVATIONS: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}
RULES: tuple[Rule, ...] = ("default", "kaiming", "xavier")
RATES = (0.003, 0.03, 0.3)


def deep(activation: str, rule: Rule, depth: int, seed: int) -> nn.Sequential:
    """Return a perceptron of ``depth`` + 1 hidden layers of 128."""
    return perceptron((64, *[128] * (depth + 1), 10), seed, False, ACTIVATIONS[activation], rule)


def learned(activation: str, rule: Rule, depth: int, seed: int, steps: int) -> float:
    """Return the least training loss over rates after so many steps."""
    samples, best = digits("train"), math.inf
    for rate in RATES:
        model = deep(activation, rule, depth, seed)
        last = fit(model, samples, SGD(model.parameters(), rate, 0.9), 64, steps, seed)[-10:]
        best = min(best, fmean(last) if math.isfinite(last[-1]) else math.inf)
    return best


def gradients(model: nn.Sequential, samples: Samples) -> list[float]:
    """Return the norm of the loss's gradient by each linear layer's output, the first first."""
    kept: list[Tensor] = []
    x = samples[0]
    for layer in model:
        x = layer(x)
        if isinstance(layer, nn.Linear):
            x.retain_grad()
            kept.append(x)
    cross_entropy(x, samples[1]).backward()
    return [float(each.grad.norm()) for each in kept if each.grad is not None]


def factor(norms: list[float]) -> float:
    """Return the factor by which a layer multiplies the gradient in the backward pass."""
    logs = [math.log(n) for n in norms[:-1]]
    return math.exp(-straight_line(range(len(logs)), logs)[0])


def sampled(rule: Rule) -> float:
    """Return the variance of a large layer's weights over the rule's."""
    layer = nn.Linear(800, 400)
    with seeded(0):
        initialize(layer, rule)
    expected = 2 / 800 if rule == "kaiming" else 2 / (800 + 400)
    return float(layer.weight.detach().var()) / expected


def lecture_example(
    w1: Tensor, w2: Tensor, steps: int, activation: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return W1 after gradient descent on (w2 . rho(W1 x) - 1)^2 / 2 at x = (.5, 1)."""
    x, w1, w2 = torch.tensor([0.5, 1.0]), w1.clone().requires_grad_(), w2.clone().requires_grad_()
    optimizer = SGD([w1, w2], 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        ((w2 @ activation(w1 @ x) - 1).square() / 2).backward()
        optimizer.step()
    return w1.detach()
