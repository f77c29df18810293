"""A deep perceptron as it is drawn, its gradients by depth, and the lecture's small examples."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from largebatch.lab.whole_batch import Samples
from largebatch.models.init import initialize
from largebatch.optim import SGD
from largebatch.report.log_fit import straight_line

Rule: TypeAlias = Literal["default", "kaiming", "xavier"]
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
}
RULES: tuple[Rule, ...] = ("default", "kaiming", "xavier")


def deep(activation: str, rule: Rule, depth: int, seed: int, width: int = 128) -> nn.Sequential:
    """Return a perceptron of ``depth`` hidden layers, drawn by ``model.init``'s rule."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Flatten(), nn.Linear(64, width)]
        for _ in range(depth):
            layers += [ACTIVATIONS[activation](), nn.Linear(width, width)]
        model = nn.Sequential(*layers, ACTIVATIONS[activation](), nn.Linear(width, 10))
        initialize(model, rule)
    return model


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
    """Return by how much a layer multiplies the gradient on its way down."""
    logs = [math.log(n) for n in norms[:-1]]
    return math.exp(-straight_line(range(len(logs)), logs)[0])


def sampled(rule: Rule) -> float:
    """Return the variance of a large layer's weights over the rule's."""
    layer = nn.Linear(800, 400)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
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
