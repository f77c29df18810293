"""The factors of moving averages (momentum, second moment) in a step of a given batch size.

A config can give such a factor per step, as a half-life in samples or epochs, or let it follow the
batch by ``optim.scaling=sde``. This module turns all three into the factor of the coming step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from largebatch.optim.config import OptimConfig
from largebatch.optim.registry import optimizers
from largebatch.schedule import Clock, Duration, half_life_factor

LEAST = 0.1
"""The smallest factor of an average per step: below it there is hardly an average left."""


def rate_rule(config: OptimConfig) -> str:
    """Return the rule by which the learning rate follows the batch.

    ``optim.scaling=sde`` stands for ``sqrt`` or ``linear``, by optimizer; any other value is
    returned. The rule keeps the covariance of the weights' path per sample. The update of Adam and
    its like does not grow with the gradient, which asks for the square root (Malladi et al. 2022,
    "On the SDEs and scaling rules for adaptive gradient algorithms"). SGD, whose momentum stays a
    number of steps, asks for proportion (Li, Tai and E 2017).
    """
    if config.scaling != "sde":
        return config.scaling
    return "sqrt" if optimizers.entry(config.name).facts.scale_free else "linear"


class Averages:
    """The factors of an optimizer's moving averages in a step, as the config sets them.

    A half-life H in samples makes a factor 2^(-batch / H). With ``optim.scaling=sde`` a factor f
    tuned at the reference batch becomes f^(batch / reference), which keeps its half-life in
    samples. eps then falls as 1 / sqrt(batch / reference), as the gradient's noise does. A
    half-life in the config goes before ``sde``. The factor of a momentum that is not an average (no
    ``dampening``) stays per step under ``sde``.

    Args:
        config: section ``optim``.
        clock: turns durations into samples; None if the config has no half-life.
        reference: ``batch.reference``, in samples; None: no factor follows the batch.
    """

    def __init__(self, config: OptimConfig, clock: Clock | None, reference: int | None) -> None:
        self._first = _samples(config.momentum_half_life, clock)
        self._second = _samples(config.beta2_half_life, clock)
        self._damped = config.dampening != 0.0 and config.dampening == config.momentum
        self._betas, self._eps = config.betas, config.eps
        self._reference = reference if config.scaling == "sde" else None

    def set(self, group: dict[str, Any], defaults: dict[str, Any], batch: int) -> None:
        """Set the factors of a parameter group for a step of ``batch`` samples.

        Args:
            defaults: the optimizer's ``defaults``; a factor that follows the batch starts from
                them.
        """
        if self._first is self._second is self._reference is None:
            return
        if self._first is not None and "momentum" in group:
            group["momentum"] = half_life_factor(batch, self._first)
            if self._damped:
                group["dampening"] = group["momentum"]  # the damped form stays an average
        if "betas" in group:
            tuned = group["betas"]
            if self._reference is not None:
                tuned = defaults.get("betas", self._betas)
            halves = (self._first, self._second)
            group["betas"] = tuple(
                self._factor(beta, half, batch) for beta, half in zip(tuned, halves, strict=True)
            )
        for key in ("alpha", "rho"):  # the second moment of RMSprop and of Adadelta
            if key in group:
                tuned = group[key] if self._reference is None else defaults[key]
                group[key] = self._factor(tuned, self._second, batch)
        scaled = "betas" in group or "alpha" in group
        if self._reference is not None and scaled and "eps" in group:
            eps = defaults.get("eps", 1e-8) if self._eps is None else self._eps
            group["eps"] = eps * (self._reference / batch) ** 0.5

    def _factor(self, tuned: float, half_life: int | None, batch: int) -> float:
        if half_life is not None:
            return half_life_factor(batch, half_life)
        if self._reference is None:
            return tuned
        return float(tuned) ** (batch / self._reference)


def short_averages(
    config: OptimConfig, clock: Clock, reference: int, largest: int
) -> Iterator[tuple[str, float]]:
    """Yield (key, factor) for averages whose factor is below 0.1 in the largest step.

    Args:
        largest: samples of the largest step that may come.
    """
    for key in ("momentum_half_life", "beta2_half_life"):
        half_life = getattr(config, key)
        if half_life is not None:
            factor = half_life_factor(largest, half_life.samples(clock))
            if factor < LEAST:
                yield f"optim.{key}={half_life}", factor
    halves = (config.momentum_half_life, config.beta2_half_life)
    if config.scaling == "sde" and "betas" in optimizers.entry(config.name).facts.takes:
        for beta, half_life in zip(config.betas, halves, strict=True):
            if half_life is None and beta > 0.0 and beta ** (largest / reference) < LEAST:
                named = f"optim.scaling=sde of optim.betas={list(config.betas)}"
                yield named, beta ** (largest / reference)


def _samples(half_life: Duration | None, clock: Clock | None) -> int | None:
    if half_life is None:
        return None
    assert clock is not None, f"a half-life of {half_life} needs the run's clock"
    return half_life.samples(clock)
