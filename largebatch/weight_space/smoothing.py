"""The loss averaged over Gaussian noise on the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from largebatch.weight_space.weights import Loss, Weights, moved


@dataclass(frozen=True)
class Smoothed:
    """A smoothed loss, and its standard error over the draws (infinite for one draw)."""

    value: float
    error: float


def gaussian_noise(weights: Weights, seed: int) -> dict[str, Tensor]:
    """Return standard normal noise for every weight: a function of the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(w.shape, generator=generator, dtype=torch.float64).to(w.device, w.dtype)
        for name, w in weights.items()
    }


def smoothed_loss(
    loss: Loss,
    weights: Weights,
    width: float,
    draws: int,
    noise: Callable[[int], Weights],
    temperature: float | None = None,
) -> Smoothed:
    """Return the loss convolved with a Gaussian: ``f^-1(mean over noise n of f(L(w + width n)))``.

    With f the identity this is the mean. For a quadratic the mean is the quadratic itself plus half
    of ``width^2 tr H``. With ``f = exp(-L / T)`` the result is the local entropy of Chaudhari et
    al. 2017, "Entropy-SGD", section 3, which gives wide valleys more weight. Every draw is used
    with both signs (antithetic), so that odd terms cancel exactly. With the same draws at every
    centre, differences between centres of a quadratic have no noise.

    Args:
        width: standard deviation, as a multiple of the noise; 0 gives the loss itself.
        draws: number of pairs of noise.
        noise: function of a draw's number, such as ``lambda k: gaussian_noise(weights, seed + k)``.
            The caller may give other shapes of noise, such as filter-normalised noise.
        temperature: T; None: f is the identity.
    """
    if width == 0.0:
        return Smoothed(loss(weights), 0.0)
    pairs = []
    for number in range(draws):
        along = noise(number)
        pairs.append([loss(moved(weights, (along, sign * width))) for sign in (1.0, -1.0)])
    if temperature is None:
        return _mean([math.fsum(pair) / 2 for pair in pairs])
    # About the least loss, so that no exponential runs over.
    least = min(value for pair in pairs for value in pair)
    kept = [math.fsum(math.exp((least - v) / temperature) for v in pair) / 2 for pair in pairs]
    mean = _mean(kept)
    value = least - temperature * math.log(mean.value)
    return Smoothed(value, temperature * mean.error / mean.value)


def _mean(values: list[float]) -> Smoothed:
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Smoothed(mean, math.inf)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return Smoothed(mean, math.sqrt(variance / count))
