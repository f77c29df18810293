"""How the learning rate and the averages follow the batch."""

from __future__ import annotations

import math

from largebatch._errors import UserError, nearest

RULES = ("none", "linear", "sqrt")


def scale_lr(lr: float, batch: int, reference: int, rule: str) -> float:
    """Return the learning rate for ``batch``, tuned as ``lr`` at ``reference``.

    ``linear`` keeps the expected update of a pass over the data (Goyal et al. 2017, 2.1); ``sqrt``
    keeps the covariance of the weights' steps (Hoffer et al. 2017, 4; Krizhevsky 2014); ``none``
    leaves the rate alone.

    Raises:
        UserError: the rule is unknown, or a batch is not positive.
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
    return lr * (ratio if rule == "linear" else math.sqrt(ratio))


def half_life_factor(batch: int, half_life: float) -> float:
    """Return the factor of an average after a step of ``batch`` samples: 2^(-batch / half_life).

    Products of it over any split of the same samples into steps are equal, so that the average's
    memory is a number of samples and not of steps.

    Args:
        batch: samples of the step.
        half_life: samples after which a contribution has halved; positive.
    """
    assert half_life > 0, f"half-life of {half_life} samples"
    return 2.0 ** (-batch / half_life)
