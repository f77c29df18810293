"""RMSprop warm-up: a run begins as RMSprop and changes gradually to SGD (Akiba et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from largebatch._errors import UserError
from largebatch.optim.closure import loss_of
from largebatch.optim.config import OptimConfig
from largebatch.optim.construct import construct
from largebatch.optim.foreign import TORCH, Foreign, translate
from largebatch.optim.optimizer import Optimizer
from largebatch.optim.parameters import check_dense, check_types
from largebatch.optim.registry import OptimizerFacts, optimizers
from largebatch.optim.settings import number
from largebatch.optim.state import begin_state, wanted_dtypes

FOREIGN: dict[str, Foreign] = {
    **TORCH,
    "capturable": Foreign({False: {}}, "the rates are the host's; torch.optim.RMSprop captures"),
    "centered": Foreign({False: {}}, "RMSpropWarmup has no centered form; torch.optim.RMSprop has"),
}


def sgd_share(place: float, center: float = 10.0, period: float = 5.0) -> float:
    """Return the share of SGD, 0 to 1, after ``place`` epochs (or samples).

    All three arguments have one unit. The share rises exponentially to 1/2 at ``center``. From
    there it rises in a straight line of the same slope, and reaches 1 ``period`` / 2 later. The
    paper (section 2.1) takes ``center`` 10 and ``period`` 5 epochs.
    """
    if place < center:
        return 0.5 * math.exp(2.0 * (place - center) / period)
    if place < center + 0.5 * period:
        return 0.5 + (place - center) / period
    return 1.0


class RMSpropWarmup(Optimizer):
    """Momentum SGD on a mix of the steps of SGD and RMSprop.

    With gradient g (L2 decay included), a the share of SGD and w the parameter::

        s <- alpha s + (1 - alpha) g^2
        v <- momentum v + (a + (1 - a) (rmsprop_lr / base lr) / (sqrt(s) + eps)) g
        w <- w - lr v

    The base lr is the ``lr`` that a group was made with. So both parts follow one schedule, and
    ``rmsprop_lr`` is the rate of the RMSprop part while ``lr`` is at its base. At a = 1 the step is
    that of :class:`largebatch.optim.SGD`, and s is no longer updated.

    Args:
        params: parameters, named parameters or groups of them, float32, float64, float16 or
            bfloat16.
        lr: rate of the SGD part; 0 stops both parts.
        momentum: factor of the buffer per step.
        weight_decay: L2 term, added to the gradient as ``weight_decay`` x parameter.
        rmsprop_lr: rate of the RMSprop part. The paper prints no value for this and the next two
            arguments. The defaults are those of its authors' code, as others report them.
        alpha: factor of the mean square per step.
        eps: added to the root of the mean square.
        maximize: ascend the gradient instead of descending.
        master_weights: keep a float32 master copy of float16 and bfloat16 parameters.
        others: arguments of ``torch.optim.RMSprop``. ``foreach`` has no effect; ``centered``,
            ``capturable`` and ``differentiable`` must be False.

    The share a is the entry ``sgd_share`` of a group. :meth:`set_epoch` sets the share as the paper
    does.

    Raises:
        UserError: a hyperparameter out of range, complex parameters, sparse gradients.
    """

    moments = ("momentum_buffer", "square_avg")
    foreign = FOREIGN

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        rmsprop_lr: float = 3e-4,
        alpha: float = 0.99,
        eps: float = 1e-8,
        maximize: bool = False,
        master_weights: bool = True,
        **others: Any,
    ) -> None:
        translate("RMSpropWarmup", FOREIGN, others)
        defaults = {
            "lr": lr,
            "base_lr": None,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "rmsprop_lr": rmsprop_lr,
            "alpha": alpha,
            "eps": eps,
            "maximize": maximize,
            "master_weights": master_weights,
            "sgd_share": sgd_share(0.0),
        }
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # state of torch's RMSprop has no base
            if group["base_lr"] is None:
                group["base_lr"] = number(group["lr"])

    def state_dtypes(self, param: Tensor, group: dict[str, Any]) -> dict[str, torch.dtype]:
        """Return the type of each entry of a parameter's state."""
        return wanted_dtypes(param, group, self.moments)

    def check(self, group: dict[str, Any]) -> None:
        """Refuse hyperparameters out of range and parameters that cannot be stepped."""
        if group["base_lr"] is None:
            group["base_lr"] = number(group["lr"])
        for key in ("lr", "weight_decay", "rmsprop_lr", "eps"):
            if not 0.0 <= number(group[key]) < math.inf:
                raise UserError(f"RMSpropWarmup: {key}={group[key]}: a number from 0 up")
        for key in ("momentum", "alpha"):
            if not 0.0 <= number(group[key]) < 1.0:
                raise UserError(
                    f"RMSpropWarmup: {key}={group[key]}: a number from 0 up and below 1"
                )
        check_types("RMSpropWarmup", group["params"])

    def set_epoch(self, epoch: float, center: float = 10.0, period: float = 5.0) -> None:
        """Set every group's share of SGD to that after ``epoch`` epochs; see :func:`sgd_share`."""
        for group in self.param_groups:
            group["sgd_share"] = sgd_share(epoch, center, period)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; return the loss of ``closure``, which may compute it anew."""
        loss = loss_of(closure)
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        params = [param for param in group["params"] if param.grad is not None]
        if not params:
            return
        check_dense("RMSpropWarmup", [param.grad for param in params])
        states = [self.state[param] for param in params]
        for param, state in zip(params, states, strict=True):
            begin_state(param, state, self.moments, group)
        buffers = [state["momentum_buffer"] for state in states]
        weights = [s.get("master", p) for s, p in zip(states, params, strict=True)]
        sign = -1.0 if group["maximize"] else 1.0
        decay, share = number(group["weight_decay"]), number(group["sgd_share"])
        grads = [
            torch.add(weight.to(buffer.dtype) * decay, param.grad, alpha=sign)
            for param, weight, buffer in zip(params, weights, buffers, strict=True)
        ]
        steps = grads
        if share < 1.0:
            alpha, base = number(group["alpha"]), number(group["base_lr"])
            squares = [state["square_avg"] for state in states]
            torch._foreach_mul_(squares, alpha)
            torch._foreach_addcmul_(squares, grads, grads, 1.0 - alpha)
            roots = torch._foreach_sqrt(squares)
            torch._foreach_add_(roots, number(group["eps"]))
            steps = list(torch._foreach_div(grads, roots))
            rate = (1.0 - share) * number(group["rmsprop_lr"])
            torch._foreach_mul_(steps, rate / base if base else 0.0)
            torch._foreach_add_(steps, grads, alpha=share)
        torch._foreach_mul_(buffers, number(group["momentum"]))
        torch._foreach_add_(buffers, steps)
        for param, weight, buffer in zip(params, weights, buffers, strict=True):
            new = torch.add(weight.to(buffer.dtype), buffer, alpha=-number(group["lr"]))
            weight.copy_(new)
            if weight is not param:
                param.copy_(new)


@optimizers.register(
    "rmsprop_warmup",
    "begins as RMSprop and passes over to momentum SGD by samples seen",
    "Akiba, Suzuki and Fukuda 2017",
    OptimizerFacts(
        frozenset(
            {
                *("momentum", "eps", "momentum_half_life", "beta2_half_life"),
                *("transition_center", "transition_period"),
            }
        )
    ),
)
def build_rmsprop_warmup(config: OptimConfig, groups: list[dict[str, Any]]) -> RMSpropWarmup:
    """Build :class:`RMSpropWarmup` from the config."""
    arguments: dict[str, Any] = {"lr": config.lr, "momentum": config.momentum}
    if config.eps is not None:
        arguments["eps"] = config.eps
    built: RMSpropWarmup = construct(RMSpropWarmup, config, groups, arguments)
    return built
