"""SGD with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from largebatch.optim.config import OptimConfig
from largebatch.optim.registry import OptimizerFacts, optimizers
from largebatch.optim.sgd import FORM_KEYS, SGD, build_form


class SGDW(SGD):
    """SGD whose weight decay does not enter the gradient or the momentum buffer.

    With gradient g, buffer b, parameter p and weight decay l::

        b <- momentum b + g;   p <- p - lr l p - lr b      (nesterov: g + momentum b for b)

    The decay acts on the parameter before the step, in proportion to the *learning rate* of the
    step, as in ``torch.optim.AdamW``. Loshchilov and Hutter take the schedule factor lr / (peak lr)
    instead: their l is ``weight_decay`` x peak lr here. They also put the rate inside the buffer
    (``lr_inside_momentum``), which is the same while the rate is constant. Without momentum, L2 and
    decoupled decay are the same, and so are :class:`SGD` and :class:`SGDW`.

    Args:
        params, lr, momentum: as in :class:`SGD`, like all arguments not named here.
        weight_decay: the l above.

    Raises:
        UserError: a hyperparameter out of range, complex parameters, sparse gradients.
        RuntimeError: ``fused=True`` where the compiled kernel is absent.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        lr_inside_momentum: bool = False,
        momentum_correction: bool = False,
        dampen_first_step: bool = False,
        master_weights: bool = True,
        state_dtype: torch.dtype | None = None,
        fused: bool | None = None,
        **others: Any,
    ) -> None:
        super().__init__(
            params,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            decoupled_weight_decay=True,
            maximize=maximize,
            lr_inside_momentum=lr_inside_momentum,
            momentum_correction=momentum_correction,
            dampen_first_step=dampen_first_step,
            master_weights=master_weights,
            state_dtype=state_dtype,
            fused=fused,
            **others,
        )


@optimizers.register(
    "sgdw",
    "SGD with weight decay decoupled from gradient and momentum (times the rate)",
    "Loshchilov and Hutter 2019",
    OptimizerFacts(FORM_KEYS | {"momentum_half_life", "decay_timescale"}),
)
def build_sgdw(config: OptimConfig, groups: list[dict[str, Any]]) -> SGDW:
    """Build :class:`SGDW` from the config."""
    return build_form(SGDW, config, groups)
