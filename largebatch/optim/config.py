"""Config section ``optim``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from largebatch._errors import UserError
from largebatch.schedule import Duration


@dataclass
class OptimConfig:
    """The optimizer, its rate and its averages."""

    name: str = "sgd"
    """Optimizer: sgd, sgdw, lars, lamb, apex_lamb (with apex installed), rmsprop_warmup, muon,
    torch's adam, adamw, nadam, radam, adagrad, rmsprop, adadelta, adamax, deepspeed (described in
    distributed.deepspeed_config), or package.module:callable: a torch.optim.Optimizer class, or
    called with this section and the parameter groups."""
    lr: float = 0.1
    """Learning rate at batch.reference."""
    scaling: Literal["none", "linear", "sqrt", "sde", "surge"] = "none"
    """How the rate follows the batch: not at all; in proportion; with its square root; sde: as its
    kind asks (linear of SGD, sqrt of Adam's), the averages of moments and eps with it; surge: as
    sqrt up to a peak at the noise scale, and down again."""
    momentum: float = 0.9
    """sgd, sgdw, lars, rmsprop, rmsprop_warmup, muon: factor of the momentum buffer per step."""
    nesterov: bool = False
    """sgd, sgdw, lars: Nesterov's look-ahead, in PyTorch's form."""
    dampening: float = 0.0
    """sgd, sgdw: the gradient enters the buffer times 1 - dampening; equal to momentum: average."""
    dampen_first_step: bool = False
    """sgd, sgdw: dampen the first step too (an average that starts at zero); PyTorch does not."""
    lr_inside_momentum: bool = False
    """sgd, sgdw: the learning rate multiplies the gradient as it enters the buffer."""
    momentum_correction: bool = False
    """sgd, sgdw: rescale a buffer that holds the rate when the rate changes (Goyal et al. 2017)."""
    weight_decay: float = 0.0
    """Weight decay: decoupled (times the rate) in sgdw, adamw and muon, L2 in the others."""
    lr_correction: bool = False
    """sgd: imitate the weight decay by the rate on weights that a norm follows, taken to be those
    of every convolution and linear layer but the classifier (Norm matters, Hoffer et al. 2018)."""
    decay_timescale: Duration | None = None
    """sgdw, adamw, muon: in place of weight_decay, how long decay at the peak rate takes to shrink
    a weight by e: batch / (rate x decay), which is kept while batch and rate change."""
    decay_norm_and_bias: bool = False
    """Decay biases and the parameters of norms too."""
    adapt_norm_and_bias: bool | None = None
    """lars, lamb: adapt the rate of biases and norm parameters; null: as the preset does."""
    preset: str | None = None
    """lars: paper, mlperf, timm, larc or optax; lamb: paper, nvlamb, author or deepspeed."""
    trust_coefficient: float | None = None
    """lars: share of a tensor's norm that a step at rate 1 may take; null: the preset's."""
    clip_norm: float | None = None
    """Largest global norm of the gradient; null: no clipping."""
    adaptive_clip: float | None = None
    """Largest norm of a unit's gradient as a share of its weights' (NFNets: 0.01); null: any."""
    adaptive_clip_eps: float = 1e-3
    """Norm of weights that adaptive_clip takes for units below it."""
    sam_rho: float | None = None
    """Sharpness-aware minimization: length of the perturbation; null: none, half the passes."""
    sam_scope: Literal["global", "rank"] = "global"
    """Whose gradient perturbs: that of all ranks, or each rank's own."""
    betas: tuple[float, float] = (0.9, 0.999)
    """lamb, adam, adamw, nadam, radam, adamax: factors of the first and second moment per step."""
    eps: float | None = None
    """Term that keeps denominators from zero; null: the optimizer's own default."""
    momentum_half_life: Duration | None = None
    """Half-life of the momentum or first moment; takes the place of the factor per step."""
    beta2_half_life: Duration | None = None
    """Half-life of the second moment; takes the place of the factor per step."""
    transition_center: Duration = field(default_factory=lambda: Duration.parse("10ep"))
    """rmsprop_warmup: where RMSprop and SGD have equal shares."""
    transition_period: Duration = field(default_factory=lambda: Duration.parse("5ep"))
    """rmsprop_warmup: half of it after the centre, SGD is alone."""
    offload: bool = False
    """sgd, sgdw, lars, lamb: keep the state and take the step on the host, beside a GPU."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further keyword arguments of the optimizer itself, such as amsgrad for adam."""

    def check(self) -> None:
        """Check ranges and contradictions; errors name the key.

        Raises:
            UserError: a number out of range, or a contradiction between keys.
        """
        _in_range("lr", self.lr, 0.0, math.inf)
        _in_range("momentum", self.momentum, 0.0, 1.0)
        _in_range("dampening", self.dampening, 0.0, 1.0)
        _in_range("weight_decay", self.weight_decay, 0.0, math.inf)
        for beta in self.betas:
            if not 0.0 <= beta < 1.0:
                raise UserError(f"optim.betas={list(self.betas)}: each from 0 up and below 1")
        for key in ("clip_norm", "adaptive_clip"):
            value = getattr(self, key)
            if value is not None and not 0.0 < value < math.inf:
                raise UserError(f"optim.{key}={value}: a number above 0, or null")
        for key in ("eps", "trust_coefficient", "adaptive_clip_eps", "sam_rho"):
            if getattr(self, key) is not None:
                _in_range(key, getattr(self, key), 0.0, math.inf)
        for key in ("momentum_half_life", "beta2_half_life", "decay_timescale"):
            half_life = getattr(self, key)
            if half_life is not None and half_life.value == 0:
                raise UserError(f"optim.{key}={half_life}: more than 0")
        if self.decay_timescale is not None and self.weight_decay != 0.0:
            raise UserError(
                f"optim.decay_timescale={self.decay_timescale}: takes the place of"
                f" optim.weight_decay={self.weight_decay}; leave one of the two out"
            )
        if self.decay_timescale is not None and self.lr == 0.0:
            raise UserError(f"optim.decay_timescale={self.decay_timescale}: needs a rate above 0")
        if self.transition_period.value == 0:
            raise UserError(f"optim.transition_period={self.transition_period}: more than 0")
        momentum = self.momentum > 0.0 or self.momentum_half_life is not None
        if self.nesterov and (not momentum or self.dampening != 0.0):
            raise UserError("optim.nesterov=true: needs optim.momentum above 0, optim.dampening=0")
        if self.momentum_correction and not self.lr_inside_momentum:
            raise UserError("optim.momentum_correction=true: needs optim.lr_inside_momentum=true")
        if self.sam_scope != "global" and self.sam_rho is None:
            raise UserError(f"optim.sam_scope={self.sam_scope}: needs optim.sam_rho")
        other_forms = self.nesterov or self.dampening or self.lr_inside_momentum
        clips = self.clip_norm or self.adaptive_clip or self.sam_rho
        if self.lr_correction and (other_forms or clips or self.weight_decay == 0.0):
            raise UserError(
                "optim.lr_correction=true: needs optim.weight_decay above 0 and none of optim."
                "nesterov, dampening, lr_inside_momentum, clip_norm, adaptive_clip and sam_rho"
            )
        if self.dampen_first_step and self.dampening == 0.0:
            raise UserError("optim.dampen_first_step=true: needs optim.dampening above 0")


def _in_range(key: str, value: float, low: float, high: float) -> None:
    if not (low <= value <= high and value < math.inf):
        bound = "from 0 up" if high == math.inf else f"from {low:g} to {high:g}"
        raise UserError(f"optim.{key}={value}: a number {bound}")
