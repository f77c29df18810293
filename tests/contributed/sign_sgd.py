"""SGD by the sign of the momentum (Bernstein et al. 2018, "signSGD", algorithm 2)."""

from __future__ import annotations

from typing import Any

import torch

from largebatch.optim.config import OptimConfig
from largebatch.optim.construct import construct
from largebatch.optim.exact import exact
from largebatch.optim.registry import OptimizerFacts, optimizers


class SignSGD(torch.optim.Optimizer):
    """m <- momentum m + (1 - momentum) g;   p <- p - lr (sign(m) + weight_decay p)."""

    def __init__(
        self, params: Any, lr: float = 1e-3, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Take a step along the gradients that are there."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    moment = self.state[p].setdefault("moment", torch.zeros_like(p))
                    moment.lerp_(p.grad, 1 - group["momentum"])
                    p.sub_(group["lr"] * (moment.sign() + group["weight_decay"] * p))


@optimizers.register(
    "sign_sgd",
    "SGD by the sign of the momentum",
    "Bernstein et al. 2018",
    OptimizerFacts(frozenset({"momentum", "momentum_half_life"})),
)
def build_sign_sgd(config: OptimConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Build :class:`SignSGD` from the config."""
    given = {"lr": config.lr, "momentum": config.momentum}
    built: torch.optim.Optimizer = construct(exact(SignSGD), config, groups, given)
    return built
