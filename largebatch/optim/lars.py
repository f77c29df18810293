"""LARS (You, Gitman and Ginsburg 2017) in the forms of its paper and of public implementations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from largebatch import _ops
from largebatch._errors import UserError
from largebatch._ops.layerwise import Stage
from largebatch.optim.bundle import Bundle
from largebatch.optim.config import OptimConfig
from largebatch.optim.construct import construct
from largebatch.optim.foreign import TORCH, Foreign, translate
from largebatch.optim.layerwise import LayerwiseOptimizer
from largebatch.optim.presets import chosen, preset_of
from largebatch.optim.registry import OptimizerFacts, optimizers
from largebatch.optim.settings import number

_PAPER: dict[str, Any] = {
    "trust_coefficient": 0.001,
    "eps": 0.0,
    "denominator": "sum",
    "lr_inside_momentum": True,
    "ratio_inside_momentum": True,
    "exclude": "none",
    "decay_excluded": True,
    "clip_ratio": False,
    "zero_norm": "decay",
}

PRESETS: dict[str, dict[str, Any]] = {
    "paper": _PAPER,
    "mlperf": {**_PAPER, "exclude": "one_dimensional", "decay_excluded": False},
    "timm": {**_PAPER, "eps": 1e-8, "lr_inside_momentum": False, "exclude": "no_decay"},
    "larc": {
        **_PAPER,
        "trust_coefficient": 0.02,
        "eps": 1e-8,
        "lr_inside_momentum": False,
        "clip_ratio": True,
        "zero_norm": "raw",
    },
    "optax": {**_PAPER, "denominator": "joint"},
}
"""The switches of five implementations; ``largebatch/optim/README.md`` has them as a table."""


FOREIGN: dict[str, Foreign] = {
    **TORCH,
    "capturable": Foreign({False: {}, True: {}}),  # it always is; a rate in a tensor stays variable
    "dampening": Foreign(
        {0.0: {}},
        "LARS has none; lr x (1 - dampening) is the same but for an undamped first step",
    ),
    "trust_coeff": Foreign(renamed="trust_coefficient"),  # timm
    "trust_clip": Foreign({False: {"clip_ratio": False}, True: {"clip_ratio": True}}),  # timm
    "always_adapt": Foreign({False: {"exclude": "no_decay"}, True: {"exclude": "none"}}),  # timm
}


class LARS(LayerwiseOptimizer):
    """Momentum SGD with a learning rate of its own for every tensor.

    With gradient g, parameter w, weight decay b and the trust coefficient c (section 3, eq. 6)::

        ratio = c |w| / (|g| + b |w| + eps)
        v <- momentum v + lr ratio (g + b w);   w <- w - v

    Every public implementation differs from the paper somewhere. Each difference is an argument
    here, and ``preset`` sets them all. None leaves an argument to the preset.

    Args:
        params: parameters, named parameters or groups of them, float32, float64, float16 or
            bfloat16, mixed at will.
        lr: learning rate; with a 0-d tensor the step can be captured in a CUDA graph.
        momentum: factor of the buffer per step.
        weight_decay: L2 term, added to the gradient as ``weight_decay`` x parameter.
        trust_coefficient: c; 0.001 in every preset but ``larc`` (0.02).
        preset: ``paper``, ``mlperf``, ``timm``, ``larc`` or ``optax``.
        nesterov: Nesterov's look-ahead, in the form of the preset.
        eps: added to the denominator.
        denominator: ``sum``: ``|g| + b |w|``; ``joint``: ``|g + b w|``.
        lr_inside_momentum: True: the rate multiplies the gradient on its way into the buffer.
            False: the rate multiplies the buffer.
        ratio_inside_momentum: the same choice for the trust ratio.
        exclude: tensors without a trust ratio: ``none``; ``one_dimensional``: biases and parameters
            of norms; ``no_decay``: tensors of groups without weight decay.
        decay_excluded: whether excluded tensors have weight decay nevertheless.
        clip_ratio: ratio <- min(ratio / lr, 1).
        zero_norm: treatment of a tensor whose norm or gradient is zero. ``decay``: ratio 1, with
            weight decay; ``raw``: the plain gradient.
        maximize: ascend the gradient instead of descending.
        master_weights: keep a float32 master copy of float16 and bfloat16 parameters, so that
            updates below their resolution add up. Steps start from the master: editing the
            parameter by hand has no effect on later steps.
        state_dtype: type of the momentum buffer, unless the parameter is float64: None for float32,
            or ``torch.bfloat16``.
        fused: True demands the compiled kernel, False the reference in PyTorch. None takes the
            kernel if it is there. With True the step also unscales under ``torch.amp.GradScaler``,
            on the device (:attr:`unscales`).
        others: arguments of timm's Lars and torch's SGD. ``trust_coeff``, ``trust_clip`` and
            ``always_adapt`` set the matching switches. ``foreach`` and ``capturable`` have no
            effect; ``dampening`` must be 0 and ``differentiable`` False.

    Raises:
        UserError: a hyperparameter out of range, complex parameters, sparse gradients.
        RuntimeError: ``fused=True`` where the compiled kernel is absent.
    """

    operator = "lars_"
    moments = ("momentum_buffer",)
    foreign = FOREIGN

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float | None = None,
        *,
        preset: str = "paper",
        nesterov: bool = False,
        eps: float | None = None,
        denominator: Literal["sum", "joint"] | None = None,
        lr_inside_momentum: bool | None = None,
        ratio_inside_momentum: bool | None = None,
        exclude: Literal["none", "one_dimensional", "no_decay"] | None = None,
        decay_excluded: bool | None = None,
        clip_ratio: bool | None = None,
        zero_norm: Literal["decay", "raw"] | None = None,
        maximize: bool = False,
        master_weights: bool = True,
        state_dtype: torch.dtype | None = None,
        fused: bool | None = None,
        **others: Any,
    ) -> None:
        switches = chosen(
            "LARS",
            PRESETS,
            preset,
            translate("LARS", FOREIGN, others),
            trust_coefficient=trust_coefficient,
            eps=eps,
            denominator=denominator,
            lr_inside_momentum=lr_inside_momentum,
            ratio_inside_momentum=ratio_inside_momentum,
            exclude=exclude,
            decay_excluded=decay_excluded,
            clip_ratio=clip_ratio,
            zero_norm=zero_norm,
        )
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "master_weights": master_weights,
            "state_dtype": state_dtype,
            "fused": fused,
            **switches,
        }
        super().__init__(params, defaults)

    def check_group(self, group: dict[str, Any]) -> None:
        """Refuse hyperparameters out of range."""
        for key, high in (("momentum", 1.0), ("trust_coefficient", None), ("eps", None)):
            if not 0.0 <= number(group[key]) < (high or float("inf")):
                bound = "from 0 up" + (f" and below {high:g}" if high else "")
                raise UserError(f"LARS: {key}={group[key]}: a number {bound}")
        if group["denominator"] not in ("sum", "joint"):
            raise UserError(f"LARS: denominator={group['denominator']!r}: sum or joint")
        if group["zero_norm"] not in ("decay", "raw"):
            raise UserError(f"LARS: zero_norm={group['zero_norm']!r}: decay or raw")
        if group["nesterov"] and group["momentum"] == 0.0:
            raise UserError("LARS: nesterov needs a momentum above 0")

    def moment_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Return the name of the momentum buffer, or nothing without momentum."""
        return self.moments if group["momentum"] != 0.0 else ()

    def call(
        self,
        bundle: Bundle,
        params: list[Tensor],
        grads: list[Tensor],
        moments: list[list[Tensor]],
        masters: list[Tensor],
        scalars: dict[str, Any],
        stage: Stage,
    ) -> None:
        """Call ``lars_`` on one bundle."""
        group = bundle.common
        _ops.lars_(
            params,
            grads,
            moments[0] if moments else [],
            masters,
            bundle.norms,
            bundle.settings,
            **scalars,
            momentum=group["momentum"],
            trust_coefficient=group["trust_coefficient"],
            eps=group["eps"],
            joint=group["denominator"] == "joint",
            lr_inside=group["lr_inside_momentum"],
            ratio_inside=group["ratio_inside_momentum"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            clip_ratio=group["clip_ratio"],
            zero_is_raw=group["zero_norm"] == "raw",
            stage=stage,
            reference=group["fused"] is False,
        )


@optimizers.register(
    "lars",
    "momentum SGD whose rate follows each tensor's norms; presets paper, mlperf, timm, larc, optax",
    "You, Gitman and Ginsburg 2017",
    OptimizerFacts(
        frozenset(
            {
                *("momentum", "nesterov", "momentum_half_life", "eps"),
                *("preset", "trust_coefficient", "adapt_norm_and_bias"),
            }
        ),
        layerwise=True,
        scale_free=True,
    ),
)
def build_lars(config: OptimConfig, groups: list[dict[str, Any]]) -> LARS:
    """Build :class:`LARS` from the config."""
    arguments: dict[str, Any] = {
        "lr": config.lr,
        "momentum": config.momentum,
        "nesterov": config.nesterov,
        "preset": preset_of(config, PRESETS),
        "trust_coefficient": config.trust_coefficient,
        "eps": config.eps,
    }
    built: LARS = construct(LARS, config, groups, arguments)
    return built
