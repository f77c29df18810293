"""Exact expected behaviour of SGD on the data set ``quadratic``, to check studies against.

For Gaussian features with covariance diag(l), noise of variance v, error e = w - truth and plain
SGD at batch B and rate r, E[e_i^2] = c_i goes to

    c_i (1 - 2 r l_i + r^2 l_i^2 (1 + 1/B)) + r^2 l_i (sum_j l_j c_j + v) / B

since E[(x x') C (x x')] = 2 H C H + tr(H C) H for one sample (Isserlis). For an average of the
weights, a <- f a + (1 - f) w, the second moments of the error follow from the c_i and from E[a_i
e_i]. The expected excess risk is 1/2 sum_i l_i c_i.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from largebatch.data.quadratic import NOISE, SPECTRUM, TRUTH
from largebatch.schedule import half_life_factor
from largebatch.study.overhead import WINDOWS, Curve
from largebatch.train.config import Config

Numbers = NDArray[np.float64]


@dataclass
class Moments:
    """Second moments of the errors of weights and average, and mixed ones; (features,) each."""

    error: Numbers = field(default_factory=lambda: TRUTH**2)
    average: Numbers = field(default_factory=lambda: TRUTH**2)
    cross: Numbers = field(default_factory=lambda: TRUTH**2)

    @property
    def loss(self) -> float:
        """Expected excess risk of the weights."""
        return float(SPECTRUM @ self.error) / 2

    @property
    def averaged(self) -> float:
        """Expected excess risk of the average of the weights."""
        return float(SPECTRUM @ self.average) / 2

    def begin_average(self) -> Moments:
        """Return the moments of a run that starts its average at this point."""
        return Moments(self.error, self.error, self.error)

    def step(self, batch: int, rate: float, half_life: float = np.inf) -> Moments:
        """Return the moments after a step."""
        shrunk = rate * SPECTRUM
        factor = 1.0 if np.isinf(half_life) else half_life_factor(batch, half_life)
        spread = rate**2 * SPECTRUM * (SPECTRUM @ self.error + NOISE**2) / batch
        error = self.error * (1 - 2 * shrunk + shrunk**2 * (1 + 1 / batch)) + spread
        across = (1 - shrunk) * self.cross
        cross = factor * across + (1 - factor) * error
        average = (
            factor**2 * self.average
            + 2 * factor * (1 - factor) * across
            + (1 - factor) ** 2 * error
        )
        return Moments(error, average, cross)


def after(
    moments: Moments,
    samples: int,
    batch: int,
    rate: Callable[[int], float],
    half_life: float = np.inf,
) -> tuple[Numbers, list[Moments]]:
    """Return (samples seen, moments) from the start to the end of ``samples``, step by step.

    Args:
        rate: learning rate of a step, as a function of the samples seen before the step.
    """
    seen, found = [0], [moments]
    while seen[-1] < samples:
        found.append(found[-1].step(batch, rate(seen[-1]), half_life))
        seen.append(seen[-1] + batch)
    return np.array(seen, dtype=np.float64), found


def applies(config: Config) -> bool:
    """Return whether a run is plain SGD on this data set, so that its expectation is known."""
    plain = config.optim
    return (
        (config.data.name, config.model.name, config.task.name)
        == ("quadratic", "linear", "regression")
        and plain.name == "sgd"
        and not (plain.momentum or plain.weight_decay or plain.clip_norm or plain.sam_rho)
    )


def judges_by_population(config: Config) -> bool:
    """Return whether the held-out loss is the exact population loss, not that of a sample."""
    return config.data.name == "quadratic"


def samples_to(target: float, batch: int, rate: Callable[[int], float], most: int) -> float | None:
    """Return the samples until the expected risk is ``target``, interpolated between steps.

    None if the run diverges, or has not reached the target after ``most`` samples.
    """
    moments, seen = Moments(), 0
    while seen < most:
        following = moments.step(batch, rate(seen))
        if not following.loss < 1e3:
            return None
        if following.loss <= target:
            share = (moments.loss - target) / (moments.loss - following.loss)
            return seen + share * batch
        moments, seen = following, seen + batch
    return None


def expected_curve(
    begun: Moments, batch: int, rate: float, window: int, half_life: float, averaged: bool
) -> Curve | None:
    """Return the expected losses of a branch at a constant rate; None if it diverges.

    Args:
        begun: moments at the checkpoint where the branch starts.
        averaged: whether the losses are those of averaged weights.
    """
    samples, found = after(
        begun.begin_average(), math.ceil(WINDOWS * window), batch, lambda _: rate, half_life
    )
    if not found[-1].loss < 1e3:
        return None
    losses = np.array([each.averaged if averaged else each.loss for each in found[1:]])
    return Curve(samples[1:], losses)
