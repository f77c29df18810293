"""Scaling rules: how the learning rate and moving averages follow the batch size."""

from __future__ import annotations

import math

from largebatch._errors import UserError, nearest

RULES = ("none", "linear", "sqrt", "surge")


def scale_lr(
    lr: float, batch: int, reference: int, rule: str, noise_scale: float | None = None
) -> float:
    """Return the learning rate for ``batch``, tuned as ``lr`` at ``reference``.

    ``linear`` keeps the expected update of a pass over the data (Goyal et al. 2017, 2.1). ``sqrt``
    keeps the covariance of the weights' steps (Hoffer et al. 2017, 4; Krizhevsky 2014). ``surge``
    rises like ``sqrt`` to a peak at the noise scale and falls beyond, as the best rate of Adam and
    of sign descent does: 1 / (sqrt(noise / B) + sqrt(B / noise)) (Li et al. 2024, "Surge phenomenon
    in optimal learning rate and batch size scaling"). ``none`` leaves the rate alone.

    Args:
        noise_scale: gradient noise scale in samples, for ``surge``.

    Raises:
        UserError: the rule is unknown, a batch is not positive, or ``surge`` has no noise scale.
    """
    if rule not in RULES:
        raise UserError(
            f"optim.scaling={rule!r}: choose from {', '.join(RULES)}{nearest(rule, RULES)}"
        )
    if batch < 1 or reference < 1:
        raise UserError(f"a batch of {min(batch, reference)}: at least 1 sample")
    if rule == "none" or batch == reference:
        return lr
    ratio = batch / reference
    if rule == "surge":
        if noise_scale is None:
            raise UserError(
                f"optim.scaling=surge for a batch of {batch}, tuned at {reference}: give the noise"
                " scale in samples as batch.noise_scale (probes: [{name: noise}] measures it)"
            )
        return lr * math.sqrt(ratio) * (noise_scale + reference) / (noise_scale + batch)
    return lr * (ratio if rule == "linear" else math.sqrt(ratio))


def half_life_factor(batch: int, half_life: float) -> float:
    """Return the factor of an average after a step of ``batch`` samples: 2^(-batch / half_life).

    The product of the factors over any split of the same samples into steps is equal. So the
    average's memory is a number of samples, not of steps.

    Args:
        batch: samples in the step.
        half_life: samples after which a contribution has halved; positive.
    """
    assert half_life > 0, f"half-life of {half_life} samples"
    return 2.0 ** (-batch / half_life)
