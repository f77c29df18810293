"""An evolution strategy: keep the best of a population, and make the next by adding noise.

Rechenberg 1973 for the strategy and its rule of one fifth; Salimans et al. 2017 for the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Fitness = Callable[[Tensor], Tensor]
"""The loss of each row of a population (members, numbers)."""

POPULATION, KEPT = 20, 4


def estimate(loss: Fitness, w: Tensor, sigma: float, pairs: int, seed: int) -> Tensor:
    """Return the mean of (f(w + s e) - f(w - s e)) e / 2s over e ~ N(0, I): the gradient of f
    smoothed by the noise, which on a quadratic is the gradient itself."""
    noise = torch.randn(pairs, len(w), dtype=w.dtype, generator=torch.Generator().manual_seed(seed))
    slope = (loss(w + sigma * noise) - loss(w - sigma * noise)) / (2 * sigma)
    return slope @ noise / pairs


def evolve(
    loss: Fitness, start: Tensor, sigma: float, seed: int, until: Callable[[float, int], bool]
) -> tuple[Tensor, int]:
    """Mutate the best until ``until`` says stop; return the overall best and the evaluations used.

    The noise grows if more than a fifth of the children are better than the worst parent; otherwise
    the noise shrinks.
    """
    generator = torch.Generator().manual_seed(seed)
    parents, scores, evaluations = start[None], loss(start[None]), 1
    while not until(float(scores[0]), evaluations):
        chosen = torch.randint(len(parents), (POPULATION,), generator=generator)
        noise = torch.randn(POPULATION, len(start), dtype=start.dtype, generator=generator)
        children = parents[chosen] + sigma * noise
        found = loss(children)
        evaluations += POPULATION
        better = float((found < scores[-1]).double().mean())
        sigma *= math.exp((better - 0.2) / 0.8 / 3)
        everyone, values = torch.cat((parents, children)), torch.cat((scores, found))
        best = values.argsort()[:KEPT]
        parents, scores = everyone[best], values[best]
    return parents[0], evaluations


def bowl(w: Tensor) -> Tensor:
    """Return half the squared length of every row."""
    return w.square().sum(-1) / 2


def evaluations(size: int, seed: int) -> int:
    """Return the evaluations until the loss of a bowl of so many weights is a tenth."""
    start = torch.ones(size, dtype=torch.float64)
    _, spent = evolve(bowl, start, size**-0.5, seed, lambda best, _: best < size / 20)
    return spent
