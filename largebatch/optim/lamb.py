"""LAMB (You et al. 2020) in the forms of its paper, nvlamb, its author's code and DeepSpeed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from largebatch import _ops
from largebatch._errors import UserError
from largebatch._ops.layerwise import BiasCorrection, Stage
from largebatch.optim.bundle import Bundle
from largebatch.optim.config import OptimConfig
from largebatch.optim.construct import construct
from largebatch.optim.foreign import TORCH, Foreign, translate
from largebatch.optim.gradient_norm import norm_parts
from largebatch.optim.layerwise import LayerwiseOptimizer
from largebatch.optim.presets import chosen, preset_of
from largebatch.optim.registry import OptimizerFacts, optimizers
from largebatch.optim.settings import number, plain

_PAPER: dict[str, Any] = {
    "eps": 1e-6,
    "bias_correction": "moments",
    "grad_averaging": True,
    "max_grad_norm": None,
    "min_ratio": 0.0,
    "max_ratio": math.inf,
    "exclude": "none",
    "decay_excluded": True,
}

PRESETS: dict[str, dict[str, Any]] = {
    "paper": _PAPER,
    "nvlamb": {**_PAPER, "max_grad_norm": 1.0},
    "author": {
        **_PAPER,
        "bias_correction": "none",
        "max_grad_norm": 1.0,
        "exclude": "no_decay",
    },
    "deepspeed": {
        **_PAPER,
        "eps": 1e-8,
        "bias_correction": "rate",
        "min_ratio": 0.01,
        "max_ratio": 10.0,
    },
}
"""The switches of four implementations; ``largebatch/optim/README.md`` has them as a table."""


CORRECTIONS = ("moments", "rate", "none")

FOREIGN: dict[str, Foreign] = {
    **TORCH,
    "capturable": Foreign({False: {}, True: {}}),  # it always is; a rate in a tensor stays variable
    # apex and DeepSpeed
    "adam_w_mode": Foreign(
        {True: {}}, "LAMB decays beside the gradient (adam_w_mode=True), never in it"
    ),
    "set_grad_none": Foreign({True: {}}, "call zero_grad(set_to_none=False) instead"),
    "amsgrad": Foreign({False: {}}, "LAMB has no such form, nor have apex and DeepSpeed"),
    "eps_inside_sqrt": Foreign({False: {}}, "LAMB adds eps to the root"),
    "use_nvlamb": Foreign({False: {"exclude": "no_decay"}, True: {"exclude": "none"}}),
    "max_coeff": Foreign(renamed="max_ratio"),
    "min_coeff": Foreign(renamed="min_ratio"),
    # timm
    "always_adapt": Foreign({False: {"exclude": "no_decay"}, True: {"exclude": "none"}}),
    "trust_clip": Foreign({False: {}, True: {"max_ratio": 1.0}}),
    "caution": Foreign({False: {}}, "LAMB has no cautious form"),
    "decoupled_decay": Foreign({False: {}}, "LAMB decays inside the norm of the update"),
    "corrected_weight_decay": Foreign({False: {}}, "LAMB's decay follows lr"),
}


class LAMB(LayerwiseOptimizer):
    """Adam with a trust ratio: each tensor's step is as long as its weights (algorithm 2).

    With gradient g, parameter w, weight decay b and t the step number::

        m <- beta1 m + (1 - beta1) g;   v <- beta2 v + (1 - beta2) g^2
        u = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + b w
        w <- w - lr (|w| / |u|) u

    Args:
        params: parameters, named parameters or groups of them, float32, float64, float16 or
            bfloat16, mixed at will.
        lr: learning rate; with a 0-d tensor the step can be captured in a CUDA graph.
        betas: factors of the moments per step.
        weight_decay: b, inside the norm of the update.
        preset: ``paper``, ``nvlamb``, ``author`` or ``deepspeed``.
        eps: added to the root of the second moment.
        bias_correction: ``moments``: as above; ``none``; or ``rate``: multiply the learning rate,
            after the trust ratio was taken. False is ``none``; True is the preset's form, or
            ``moments`` where the preset has none.
        grad_averaging: whether the gradient enters the first moment times 1 - beta1. False: times
            1.
        max_grad_norm: global norm that the gradients of all groups are clipped to before they enter
            the moments. 0, or None with the preset ``paper``: no clipping. One value for all
            groups. torch's ``ZeroRedundancyOptimizer`` shows each rank some of the tensors only:
            there, clip before the step instead.
        min_ratio, max_ratio: bounds of the trust ratio.
        exclude, decay_excluded, maximize, master_weights, state_dtype, fused: as in
            :class:`largebatch.optim.LARS`.
        others: arguments of apex's, DeepSpeed's and timm's LAMB. ``use_nvlamb``, ``always_adapt``,
            ``trust_clip``, ``max_coeff`` and ``min_coeff`` set the matching switches. Others are
            accepted if they ask for what LAMB does.

    Raises:
        UserError: a hyperparameter out of range, complex parameters, sparse gradients.
        RuntimeError: ``fused=True`` where the compiled kernel is absent.
    """

    operator = "lamb_"
    moments = ("exp_avg", "exp_avg_sq")
    foreign = FOREIGN

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: Sequence[float] = (0.9, 0.999),
        weight_decay: float = 0.01,
        *,
        preset: str = "paper",
        eps: float | None = None,
        bias_correction: Literal["moments", "rate", "none"] | bool | None = None,
        grad_averaging: bool | None = None,
        max_grad_norm: float | None = None,
        min_ratio: float | None = None,
        max_ratio: float | None = None,
        exclude: Literal["none", "one_dimensional", "no_decay"] | None = None,
        decay_excluded: bool | None = None,
        maximize: bool = False,
        master_weights: bool = True,
        state_dtype: torch.dtype | None = None,
        fused: bool | None = None,
        **others: Any,
    ) -> None:
        switches = chosen(
            "LAMB",
            PRESETS,
            preset,
            translate("LAMB", FOREIGN, others),
            eps=eps,
            bias_correction=bias_correction,
            grad_averaging=grad_averaging,
            max_grad_norm=max_grad_norm,
            min_ratio=min_ratio,
            max_ratio=max_ratio,
            exclude=exclude,
            decay_excluded=decay_excluded,
        )
        switches["bias_correction"] = _named(switches["bias_correction"], PRESETS[preset])
        defaults = {
            "lr": lr,
            "betas": plain(betas),
            "weight_decay": weight_decay,
            "maximize": maximize,
            "master_weights": master_weights,
            "state_dtype": state_dtype,
            "fused": fused,
            **switches,
        }
        super().__init__(params, defaults)

    @property
    def max_grad_norm(self) -> float | None:
        """The global norm that the gradients of all groups are scaled to; None: no clipping."""
        norms = {plain(group["max_grad_norm"]) or None for group in self.param_groups}
        if len(norms) > 1:
            raise UserError(f"LAMB: max_grad_norm={sorted(map(str, norms))}: one for all groups")
        return norms.pop() if norms else None

    @max_grad_norm.setter
    def max_grad_norm(self, value: float | None) -> None:
        for group in self.param_groups:
            group["max_grad_norm"] = value

    def check_group(self, group: dict[str, Any]) -> None:
        """Refuse hyperparameters out of range."""
        betas = plain(group["betas"])
        if not (
            isinstance(betas, tuple) and len(betas) == 2 and all(0.0 <= b < 1.0 for b in betas)
        ):
            raise UserError(f"LAMB: betas={group['betas']}: two, each from 0 up and below 1")
        if not 0.0 <= number(group["eps"]) < math.inf:
            raise UserError(f"LAMB: eps={group['eps']}: a number from 0 up")
        if not 0.0 <= number(group["min_ratio"]) <= number(group["max_ratio"]):
            raise UserError(
                f"LAMB: min_ratio={group['min_ratio']}, max_ratio={group['max_ratio']}: from 0 up, "
                "the first not above the second"
            )
        if _named(group["bias_correction"], self.defaults) not in CORRECTIONS:
            raise UserError(
                f"LAMB: bias_correction={group['bias_correction']!r}: {', '.join(CORRECTIONS)}, "
                "or True or False"
            )
        norm = group["max_grad_norm"]
        if norm is not None and not 0.0 <= number(norm) < math.inf:
            raise UserError(f"LAMB: max_grad_norm={norm}: a number from 0 up")

    def moment_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Return the names of the two moments."""
        return self.moments

    def adopt_group(self, group: dict[str, Any], states: dict[Any, Any]) -> dict[str, Any]:
        """Return a saved group in our terms; timm and apex count steps in groups, not states."""
        group = super().adopt_group(group, states)
        group["bias_correction"] = _named(
            group.get("bias_correction", self.defaults["bias_correction"]), self.defaults
        )
        step = group.pop("step", None)
        for each in group["params"]:
            if each not in states:
                continue
            if step is not None and "step" not in states[each]:
                states[each] = {**states[each], "step": step}
            number(states[each].get("step", 0))
        return group

    def state_dtypes(self, param: Tensor, group: dict[str, Any]) -> dict[str, torch.dtype]:
        """Return the types of what a parameter's state holds."""
        return {**super().state_dtypes(param, group), "step": torch.float32}

    def prepare(self, factor: Tensor | None) -> Tensor | None:
        """Add this optimizer's own clipping to the factor of the gradients."""
        bound = self.max_grad_norm
        if bound is None:
            return factor
        params = [param for group in self.param_groups for param in group["params"]]
        parts = norm_parts("LAMB", params, self.fragments)
        if not parts:
            return factor
        scale = None if factor is None else factor.to(parts[0].device)
        return _ops.clip_factor(parts, bound, eps=0.0, scale=scale)[1]

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
        """Call ``lamb_`` on one bundle."""
        group = bundle.common
        steps = self._steps(bundle)
        first, second = moments
        _ops.lamb_(
            params,
            grads,
            first,
            second,
            masters,
            steps,
            bundle.norms,
            bundle.settings,
            **scalars,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            eps=group["eps"],
            bias_correction=_named(group["bias_correction"], self.defaults),
            grad_averaging=group["grad_averaging"],
            maximize=group["maximize"],
            min_ratio=group["min_ratio"],
            max_ratio=group["max_ratio"],
            stage=stage,
            reference=group["fused"] is False,
        )
        if not bundle.whole:
            for piece, step in zip(bundle.pieces, steps, strict=True):
                self.state[bundle.params[piece.param]]["step"].copy_(step)

    def _steps(self, bundle: Bundle) -> list[Tensor]:
        """Return a step count a tensor; the pieces of a split parameter count apart in a call."""
        states = bundle.fit.last
        if not all("step" in state for state in states):
            for param, state in zip(bundle.params, states, strict=True):
                state.setdefault("step", torch.zeros((), dtype=torch.float32, device=param.device))
        if bundle.whole:
            return [state["step"] for state in states]
        return [states[piece.param]["step"].clone() for piece in bundle.pieces]


def _named(correction: Any, own: Mapping[str, Any]) -> BiasCorrection:
    """Return a bias correction by name, given also as True or False; ``own`` says what True is."""
    if correction in (True, False):
        way: BiasCorrection = own["bias_correction"]
        return ("moments" if way == "none" else way) if correction else "none"
    named: BiasCorrection = correction
    return named


@optimizers.register(
    "lamb",
    "Adam whose step follows each tensor's norm; presets paper, nvlamb, author, deepspeed",
    "You et al. 2020",
    OptimizerFacts(
        frozenset(
            (
                "betas",
                "eps",
                "momentum_half_life",
                "beta2_half_life",
                "preset",
                "adapt_norm_and_bias",
            )
        ),
        layerwise=True,
        scale_free=True,
    ),
)
def build_lamb(config: OptimConfig, groups: list[dict[str, Any]]) -> LAMB:
    """Build :class:`LAMB` from the config."""
    arguments: dict[str, Any] = {
        "lr": config.lr,
        "betas": tuple(config.betas),
        "preset": preset_of(config, PRESETS),
        "eps": config.eps,
    }
    built: LAMB = construct(LAMB, config, groups, arguments)
    return built
