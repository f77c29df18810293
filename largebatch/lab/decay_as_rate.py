"""Weight decay before a batch norm equals a correction of the rate: the directions are the same.

Hoffer et al. 2018, "Norm matters", section 2.2; exact with 1 - rate x decay in the denominator.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from largebatch.lab.digits import digits
from largebatch.lab.networks import perceptron


def hidden(model: nn.Module) -> list[nn.Linear]:
    """Return the linear layers but the last."""
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear)][:-1]


def directions(seed: int, steps: int = 30) -> tuple[float, float]:
    """Compare decay with the corrected rate, by plain gradient descent in float64.

    Returns:
        The largest distance between two directions of a layer, and the largest cosine between a
        layer's weights and their gradient.
    """
    samples = digits("train", torch.float64, 256)
    rate, decay, cosine = 0.1, 0.1, 0.0
    decayed, corrected = (
        perceptron((64, 64, 64, 10), seed, True, dtype=torch.float64) for _ in range(2)
    )
    for module in (*decayed.modules(), *corrected.modules()):
        if isinstance(module, nn.BatchNorm1d):
            module.eps = 1e-30
    pairs = list(zip(hidden(decayed), hidden(corrected), strict=True))
    for _ in range(steps):
        factors = [
            float(b.square().sum() / a.square().sum() / (1 - rate * decay))
            for a, b in ((a.weight.detach(), b.weight.detach()) for a, b in pairs)
        ]
        for model in (decayed, corrected):
            model.zero_grad()
            cross_entropy(model(samples[0]), samples[1]).backward()
        with torch.no_grad():
            for (a, b), factor in zip(pairs, factors, strict=True):
                cosine = max(cosine, abs(float(_cosine(a.weight, a.weight.grad))))
                a.weight.mul_(1 - rate * decay)
                _step(b.weight, rate * (factor - 1))  # the rest comes below
            for model in (decayed, corrected):
                for p in model.parameters():
                    _step(p, rate)
    apart = max(float((_unit(a.weight) - _unit(b.weight)).norm()) for a, b in pairs)
    return apart, cosine


def _step(w: Tensor, rate: float) -> None:
    assert w.grad is not None
    w.sub_(w.grad, alpha=rate)


def _unit(w: Tensor) -> Tensor:
    return w.detach() / w.detach().norm()


def _cosine(w: Tensor, g: Tensor | None) -> Tensor:
    assert g is not None
    return (w * g).sum() / (w.norm() * g.norm())
