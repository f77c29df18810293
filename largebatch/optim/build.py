"""Make the optimizer that a config describes, and set its hyperparameters before each step."""

from __future__ import annotations

import torch
from torch import nn

from largebatch._errors import UserError
from largebatch.optim.averages import Averages
from largebatch.optim.config import OptimConfig
from largebatch.optim.groups import param_groups
from largebatch.optim.imported import build_imported
from largebatch.optim.loss_scaling import ScaledStep
from largebatch.optim.offload import Offload
from largebatch.optim.registry import optimizers, refuse_unused
from largebatch.optim.rmsprop_warmup import sgd_share
from largebatch.schedule import Clock


def build_optimizer(config: OptimConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer that ``config`` names, over the parameters of ``model``.

    Raises:
        UserError: a key of ``optim`` is wrong, or the optimizer cannot take the model.
    """
    config.check()
    entry = optimizers.entry(config.name)
    groups = param_groups(
        model,
        # A timescale sets it before each step, of the groups that have one.
        config.weight_decay if config.decay_timescale is None else 1.0,
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
    reference: int | None = None,
    peak: float | None = None,
    size: int | None = None,
) -> None:
    """Set the hyperparameters of the coming step: rate, averages, weight decay, transition.

    Optimizers of the Adam family correct bias by the step count and the current factor. That is
    exact while the batch stays the same.

    Args:
        lr: the rate of the step; a group's ``lr_multiplier`` (1 if absent) multiplies it.
        batch: samples in the step.
        clock: turns durations into samples; needed only if the optimizer has some.
        samples: samples seen before the step.
        reference: batch size that averages are tuned at, for ``optim.scaling=sde``.
        peak: peak learning rate at this batch, for ``optim.decay_timescale``.
        size: batch size of the phase.
    """
    averages = Averages(config, clock, reference)
    defaults = getattr(getattr(optimizer, "optimizer", optimizer), "defaults", {})
    decay = None
    if config.decay_timescale is not None and peak:
        assert clock is not None, "optim.decay_timescale needs the run's clock"
        decay = (size or batch) / (peak * config.decay_timescale.samples(clock))
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_multiplier", 1.0)
        averages.set(group, defaults, batch)
        if decay is not None and group["weight_decay"] != 0.0:
            group["weight_decay"] = decay
        if "sgd_share" in group:
            assert clock is not None, "the transition from RMSprop to SGD needs the run's clock"
            center = config.transition_center.samples(clock)
            period = config.transition_period.samples(clock)
            group["sgd_share"] = sgd_share(samples, center, period)
