"""A placeholder for an optimizer that the engine (DeepSpeed) makes from its own config."""

from __future__ import annotations

from typing import Any

import torch

from largebatch.optim.config import OptimConfig
from largebatch.optim.construct import construct
from largebatch.optim.registry import OptimizerFacts, optimizers


class DeferredOptimizer(torch.optim.Optimizer):
    """Holds parameter groups, rate and weight decay until the engine makes the real optimizer."""

    def __init__(self, groups: list[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, {"lr": lr})

    def step(self, closure: Any = None) -> Any:
        """Not meant to be called: the engine's optimizer takes the steps."""
        raise AssertionError("the engine has not put its optimizer in place")


@optimizers.register(
    "deepspeed",
    "the optimizer that the section `optimizer` of distributed.deepspeed_config describes",
    "DeepSpeed, Configuration JSON, Optimizer Parameters",
    OptimizerFacts(by_engine=True),
)
def build_deferred(config: OptimConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Build the parameter groups; ``distributed.engine=deepspeed`` makes the optimizer."""
    built: torch.optim.Optimizer = construct(DeferredOptimizer, config, groups, {"lr": config.lr})
    return built
