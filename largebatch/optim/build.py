"""From config to optimizer, and from samples to the factors of a step."""

from __future__ import annotations

import torch
from torch import nn

from largebatch._errors import UserError
from largebatch.optim.config import OptimConfig
from largebatch.optim.groups import param_groups
from largebatch.optim.imported import build_imported
from largebatch.optim.loss_scaling import ScaledStep
from largebatch.optim.offload import Offload
from largebatch.optim.registry import optimizers, refuse_unused
from largebatch.optim.rmsprop_warmup import sgd_share
from largebatch.schedule import Clock, Duration, half_life_factor


def build_optimizer(config: OptimConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer that ``config`` names, over the parameters of ``model``.

    Raises:
        UserError: a key of ``optim`` is wrong, or the optimizer cannot take the model.
    """
    config.check()
    entry = optimizers.entry(config.name)
    groups = param_groups(
        model,
        config.weight_decay,
        config.decay_norm_and_bias,
        config.adapt_norm_and_bias,
        config.lr_correction,
    )
    if optimizers.imports(config.name):
        optimizer = build_imported(entry.factory, config, groups)
    else:
        refuse_unused(config, entry.facts.takes)
        optimizer = entry.factory(config, groups)
    if isinstance(optimizer, ScaledStep):
        optimizer.unscales = True  # a run clips by a factor and waits for no device
    if not config.offload:
        return optimizer
    try:
        return Offload(optimizer)
    except UserError as error:
        raise UserError(f"optim.offload=true: {error}") from None


def set_step(
    optimizer: torch.optim.Optimizer,
    config: OptimConfig,
    lr: float,
    batch: int,
    clock: Clock | None = None,
    samples: int = 0,
) -> None:
    """Set what the coming step depends on: its rate, averages with a half-life, a transition.

    A half-life H makes the factor per step 2^(-batch / H), whatever the batch (see
    ``half_life_factor``). The bias correction of the Adam family counts steps with the factor of
    the moment, which is exact while the batch stays the same.

    Args:
        lr: the rate of the step; a group's ``lr_multiplier`` (1 if absent) multiplies it.
        batch: samples of the step.
        clock: turns durations into samples; needed only if the optimizer has some.
        samples: seen before the step.
    """
    first = _factor(config.momentum_half_life, batch, clock)
    second = _factor(config.beta2_half_life, batch, clock)
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_multiplier", 1.0)
        if first is not None and "momentum" in group:
            group["momentum"] = first
            if config.dampening != 0.0 and config.dampening == config.momentum:
                group["dampening"] = first  # the damped form stays an average
        if "betas" in group and (first is not None or second is not None):
            old = group["betas"]
            group["betas"] = (
                old[0] if first is None else first,
                old[1] if second is None else second,
            )
        for key in ("alpha", "rho"):  # the second moment of RMSprop and of Adadelta
            if second is not None and key in group:
                group[key] = second
        if "sgd_share" in group:
            assert clock is not None, "the transition from RMSprop to SGD needs the run's clock"
            center = config.transition_center.samples(clock)
            period = config.transition_period.samples(clock)
            group["sgd_share"] = sgd_share(samples, center, period)


def _factor(half_life: Duration | None, batch: int, clock: Clock | None) -> float | None:
    if half_life is None:
        return None
    assert clock is not None, f"a half-life of {half_life} needs the run's clock"
    return half_life_factor(batch, half_life.samples(clock))
