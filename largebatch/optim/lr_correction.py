"""LR correction: weight decay on scale-invariant weights, imitated by the learning rate.

Hoffer, Banner, Golan, Soudry, "Norm matters", 2018, section 3. Only the direction of a weight in
front of a norm has an effect. A step turns the direction by about lr |gradient at the direction| /
|w|^2. Weight decay acts by keeping |w| small, so a run without decay takes the same path at the
rate

    lr |w|^2 / |w_decayed|^2,

per output channel, where w_decayed is the weight of the run with decay. The paper measures
|w_decayed| in such a run. Here the norm is computed: under SGD the two runs' weights stay parallel,
and their ratio q = |w_decayed| / |w| is the same in all channels. q is what decay alone makes of a
weight of 1, by the optimizer's own recurrence with momentum m:

    c <- m c + decay q;    q' = q - lr c;    corrected rate = lr / (q q')

This is exact, momentum included, for gradients that are exactly scale-invariant (a norm's eps
breaks that slightly), and for changing rates. The weights of the corrected run grow as 1 / q: by
e^(lr decay steps / (1 - m)), which float32 holds for any run of practical length.
"""

from __future__ import annotations

from typing import Any

from largebatch._errors import UserError
from largebatch.optim.settings import number


def corrected_rate(group: dict[str, Any], lr: float) -> float:
    """Return the rate of the coming step that imitates weight decay; update ``group``.

    Args:
        group: a parameter group. ``momentum`` and ``imitated_decay`` are read; q is kept in
            ``decayed_norm`` and c in ``decayed_buffer``, which a checkpoint saves with the group.
        lr: the rate of the run with decay.

    Raises:
        UserError: rate x decay is so large that it would turn the weights' sign.
    """
    norm, momentum = number(group["decayed_norm"]), number(group["momentum"])
    decay = number(group["imitated_decay"])
    buffer = momentum * number(group["decayed_buffer"]) + decay * norm
    after = norm - lr * buffer
    if after <= 0.0:
        raise UserError(
            f"optim.lr_correction=true: a rate of {lr:g} with a weight decay of "
            f"{decay:g} would turn the weights around; lower one of them"
        )
    group["decayed_norm"], group["decayed_buffer"] = after, buffer
    return float(lr / (norm * after))
