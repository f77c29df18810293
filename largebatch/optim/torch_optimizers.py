"""torch's own optimizers by name, in their fastest implementation for the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

from largebatch.optim.config import OptimConfig
from largebatch.optim.construct import construct
from largebatch.optim.exact import exact
from largebatch.optim.registry import OptimizerFacts, optimizers


@dataclass(frozen=True)
class TorchOptimizer:
    """The factory of one of torch's optimizers in the registry: passes config keys on to it.

    Args:
        kind: the class.
        takes: the keys of ``OptimConfig`` that it uses, beside those that all optimizers use.
        fused_op: the operator of its fused implementation; None if torch has none.
    """

    kind: type[torch.optim.Optimizer]
    takes: frozenset[str]
    fused_op: str | None = None

    def __call__(self, config: OptimConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Build the optimizer.

        Raises:
            UserError: one of ``optim.options`` that it does not take.
        """
        arguments: dict[str, Any] = {"lr": config.lr, **_implementation(self.fused_op, groups)}
        if "momentum" in self.takes:
            arguments["momentum"] = config.momentum
        if "betas" in self.takes:
            arguments["betas"] = tuple(config.betas)
        if config.eps is not None:
            arguments["eps"] = config.eps
        built: torch.optim.Optimizer = construct(exact(self.kind), config, groups, arguments)
        return built


def _implementation(fused_op: str | None, groups: list[dict[str, Any]]) -> dict[str, bool]:
    """Choose ``fused`` where torch has such a kernel for every parameter's device, else foreach."""
    params = [param for group in groups for _, param in group["params"]]
    if fused_op is not None and all(
        param.is_floating_point()
        and param.device.type in _get_fused_kernels_supported_devices()
        and torch._C._dispatch_has_kernel_for_dispatch_key(fused_op, param.device.type.upper())
        for param in params
    ):
        return {"fused": True}
    return {"foreach": True}


_BETAS = frozenset({"betas", "eps", "momentum_half_life", "beta2_half_life"})
_ADAM = "Kingma and Ba 2015"

for _name, _optimizer, _summary, _source in (
    (
        "adam",
        TorchOptimizer(torch.optim.Adam, _BETAS, "aten::_fused_adam_"),
        "Adam with L2 weight decay",
        _ADAM,
    ),
    (
        "adamw",
        TorchOptimizer(torch.optim.AdamW, _BETAS | {"decay_timescale"}, "aten::_fused_adamw_"),
        "Adam with decoupled weight decay (times the rate)",
        "Loshchilov and Hutter 2019",
    ),
    ("nadam", TorchOptimizer(torch.optim.NAdam, _BETAS), "Adam with Nesterov's step", "Dozat 2016"),
    ("radam", TorchOptimizer(torch.optim.RAdam, _BETAS), "rectified Adam", "Liu et al. 2020"),
    (
        "adagrad",
        TorchOptimizer(torch.optim.Adagrad, frozenset({"eps"}), "aten::_fused_adagrad_"),
        "rate over the root of the sum of squared gradients",
        "Duchi et al. 2011",
    ),
    (
        "rmsprop",
        TorchOptimizer(
            torch.optim.RMSprop,
            frozenset({"momentum", "eps", "momentum_half_life", "beta2_half_life"}),
        ),
        "gradient over the root of its running mean square, with momentum",
        "Tieleman and Hinton 2012",
    ),
    (
        "adadelta",
        TorchOptimizer(torch.optim.Adadelta, frozenset({"eps", "beta2_half_life"})),
        "running mean squares of gradients and of updates",
        "Zeiler 2012",
    ),
    (
        "adamax",
        TorchOptimizer(torch.optim.Adamax, _BETAS),
        "Adam with the largest gradient in place of the second moment",
        _ADAM,
    ),
):
    _facts = OptimizerFacts(_optimizer.takes, scale_free=True)
    optimizers.register(_name, _summary, _source, _facts)(_optimizer)
