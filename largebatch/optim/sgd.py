"""SGD with momentum in every form in use, as one pass over memory.

The forms are: undamped with the rate outside the buffer (PyTorch); damped (Lua Torch's default);
Nesterov's, in PyTorch's variables; and with the rate inside the buffer (Caffe, TensorFlow, the
original heavy ball). The last may have the momentum correction of Goyal et al. 2017 (section 3).
Sources: Polyak 1964; Nesterov 1983; Sutskever et al. 2013.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from largebatch import _ops
from largebatch._errors import UserError
from largebatch.optim.config import OptimConfig
from largebatch.optim.construct import construct
from largebatch.optim.foreign import TORCH, Foreign, translate
from largebatch.optim.loss_scaling import ScaledStep
from largebatch.optim.lr_correction import corrected_rate
from largebatch.optim.optimizer import Optimizer
from largebatch.optim.parameters import (
    any_sharded,
    check_dense,
    check_types,
    local,
    tell_autograd,
)
from largebatch.optim.registry import OptimizerFacts, optimizers
from largebatch.optim.settings import number
from largebatch.optim.state import Fit, check_state_dtype, wanted_dtypes

TORCH_SGD: dict[str, Foreign] = {
    **TORCH,
    "capturable": Foreign(
        {False: {}},
        "the rate is the host's, and a graph would keep the one of its capture; LARS and LAMB read "
        "a rate in a tensor on the device",
    ),
}


class SGD(ScaledStep, Optimizer):
    """Multi-tensor SGD, a drop-in replacement for ``torch.optim.SGD``.

    Args:
        params: parameters, named parameters or groups of them, float32, float64, float16 or
            bfloat16.
        lr: learning rate.
        momentum: factor of the buffer per step.
        dampening: the gradient enters the buffer times 1 - ``dampening``.
        weight_decay: L2 term, added to the gradient as ``weight_decay`` x parameter.
        nesterov: Nesterov's form; needs ``momentum`` and no ``dampening``.
        decoupled_weight_decay: decay by p <- p - lr ``weight_decay`` p instead, outside of gradient
            and buffer (see :class:`largebatch.optim.SGDW`).
        maximize: ascend the gradient instead of descending.
        lr_inside_momentum: b <- momentum b + lr g; p <- p - b, instead of p <- p - lr b.
        momentum_correction: b <- momentum (lr / previous lr) b + lr g, which makes the rate
            inside the buffer equal to the rate outside it.
        imitated_decay: a weight decay to imitate by raising the rate: weights in front of a norm
            take the directions that they would take under this decay
            (``largebatch.optim.lr_correction``). Only for groups of such weights.
        dampen_first_step: with ``dampening``, start the buffer as an average at zero. False
            (PyTorch): the buffer starts at the first gradient.
        master_weights, state_dtype: as in :class:`largebatch.optim.LARS`.
        fused: True demands the compiled kernel, False the reference in PyTorch. None takes the
            kernel if it is there. With True the step also unscales under ``torch.amp.GradScaler``,
            on the device (:attr:`unscales`).
        others: arguments of ``torch.optim.SGD``. ``foreach`` has no effect; ``differentiable`` and
            ``capturable`` must be False.

    Raises:
        UserError: a hyperparameter out of range, complex parameters, sparse gradients.
        RuntimeError: ``fused=True`` where the compiled kernel is absent.
    """

    moments = ("momentum_buffer",)
    foreign = TORCH_SGD

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        lr_inside_momentum: bool = False,
        momentum_correction: bool = False,
        dampen_first_step: bool = False,
        imitated_decay: float = 0.0,
        master_weights: bool = True,
        state_dtype: torch.dtype | None = None,
        fused: bool | None = None,
        **others: Any,
    ) -> None:
        translate(type(self).__name__, self.foreign, others)
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
            "lr_inside_momentum": lr_inside_momentum,
            "momentum_correction": momentum_correction,
            "dampen_first_step": dampen_first_step,
            "previous_lr": None,
            "imitated_decay": imitated_decay,
            "decayed_norm": 1.0,
            "decayed_buffer": 0.0,
            "master_weights": master_weights,
            "state_dtype": state_dtype,
            "fused": fused,
        }
        super().__init__(params, defaults)
        self._fits: dict[int, Fit] = {}
        self.unscales = fused is True

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._fits = {}

    def state_dtypes(self, param: Tensor, group: dict[str, Any]) -> dict[str, torch.dtype]:
        """Return the type of each entry of a parameter's state."""
        return wanted_dtypes(param, group, self.moments)

    def take(self, factor: Tensor | None, found_inf: Tensor | None) -> None:
        """Take a step along ``factor`` x gradient; none where ``found_inf`` is not 0."""
        for index, group in enumerate(self.param_groups):
            self._step_group(index, group, factor, found_inf)

    def _step_group(
        self,
        index: int,
        group: dict[str, Any],
        factor: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        params = [param for param in group["params"] if param.grad is not None]
        if not params:
            return
        lr, momentum, dampening = (number(group[k]) for k in ("lr", "momentum", "dampening"))
        starts_undamped = momentum != 0.0 and dampening != 0.0 and not group["dampen_first_step"]
        fresh: list[Tensor] = []
        if starts_undamped:
            fresh = [p for p in params if "momentum_buffer" not in self.state.get(p, ())]
        # Only what the host keeps count of, the first step and earlier rates, has to know
        # whether this step is skipped; everything else leaves that to the device.
        counts = group["momentum_correction"] or group["imitated_decay"]
        if found_inf is not None and (counts or fresh):
            if found_inf.item() != 0:
                return
            found_inf = None
        if group["imitated_decay"]:
            lr = corrected_rate(group, lr)
        buffer_factor = 1.0
        if group["momentum_correction"]:
            previous = group["previous_lr"]
            buffer_factor = lr / number(previous) if previous else 1.0
            group["previous_lr"] = lr
        names = self.moments if momentum != 0.0 else ()
        states = self._fits.setdefault(index, Fit()).states(self.state, params, names, group)
        settings = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": number(group["weight_decay"]),
            "decoupled": bool(group["decoupled_weight_decay"]),
            "nesterov": bool(group["nesterov"]),
            "maximize": bool(group["maximize"]),
            "lr_inside_momentum": bool(group["lr_inside_momentum"]),
            "buffer_factor": buffer_factor,
        }
        reference = group["fused"] is False
        devices = {param.device: None for param in params}
        if len(devices) == 1 and not fresh:
            self._call(params, states, settings, reference, factor, found_inf)
            return
        new = set(map(id, fresh))
        for device in devices:
            for begins in (True, False):
                part = [
                    place
                    for place, param in enumerate(params)
                    if param.device == device and (id(param) in new) == begins
                ]
                if part:
                    self._call(
                        [params[place] for place in part],
                        [states[place] for place in part] if states else [],
                        {**settings, "dampening": 0.0} if begins else settings,
                        reference,
                        factor,
                        found_inf,
                    )

    def _call(
        self,
        params: list[Tensor],
        states: list[dict[str, Any]],
        settings: dict[str, Any],
        reference: bool,
        factor: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        device = params[0].device
        grads: list[Tensor] = []
        for param in params:
            assert param.grad is not None
            grads.append(param.grad)
        check_dense(type(self).__name__, grads)
        buffers = [state["momentum_buffer"] for state in states if settings["momentum"] != 0.0]
        masters: list[Tensor] = []
        if any("master" in state for state in states):
            absent = torch.empty(0, device=device)
            masters = [state.get("master", absent) for state in states]
        lists: list[list[Tensor]] = [params, grads, buffers, masters]
        if any_sharded(params):
            lists = [[local(tensor) for tensor in tensors] for tensors in lists]
        run = _ops.reference_sgd_ if reference else _ops.sgd_
        run(
            *lists,
            **settings,
            grad_factor=None if factor is None else factor.to(device),
            found_inf=None if found_inf is None else found_inf.to(device),
        )
        tell_autograd(params)

    def check(self, group: dict[str, Any]) -> None:
        """Refuse hyperparameters out of range and parameters that cannot be stepped."""
        name = type(self).__name__
        for key in ("lr", "momentum", "weight_decay", "imitated_decay"):
            if not 0.0 <= number(group[key]) < math.inf:
                raise UserError(f"{name}: {key}={group[key]}: a number from 0 up")
        if group["nesterov"] and (group["momentum"] <= 0.0 or group["dampening"] != 0.0):
            raise UserError(f"{name}: nesterov needs a momentum above 0 and no dampening")
        if group["momentum_correction"] and not group["lr_inside_momentum"]:
            raise UserError(f"{name}: momentum_correction needs lr_inside_momentum")
        other_forms = group["nesterov"] or group["dampening"] or group["lr_inside_momentum"]
        if group["imitated_decay"] and (other_forms or group["weight_decay"]):
            raise UserError(
                f"{name}: imitated_decay takes the place of weight_decay, and needs momentum in "
                "its plain form: no nesterov, dampening or lr_inside_momentum"
            )
        check_state_dtype(name, group)
        check_types(name, group["params"])
        for param in group["params"]:
            if group["fused"] and not _ops.is_compiled("sgd_", param.device):
                raise RuntimeError(
                    f"{name}: fused=True, but the compiled op is absent on {param.device.type}: "
                    f"{_ops.backends()['sgd_'].get(param.device.type, 'no kernel for this device')}"
                )


Form = TypeVar("Form", bound=SGD)
FORM_KEYS = frozenset(
    {
        *("momentum", "nesterov", "dampening", "dampen_first_step"),
        *("lr_inside_momentum", "momentum_correction"),
    }
)
"""Keys of ``optim`` that are arguments of :class:`SGD` and of its forms."""


@optimizers.register(
    "sgd",
    "SGD with momentum, Nesterov, dampening, the rate inside or outside the buffer",
    "Polyak 1964; Nesterov 1983; Goyal et al. 2017, section 3",
    OptimizerFacts(FORM_KEYS | {"momentum_half_life", "lr_correction"}),
)
def build_sgd(config: OptimConfig, groups: list[dict[str, Any]]) -> SGD:
    """Build :class:`SGD` from the config."""
    return build_form(SGD, config, groups)


def build_form(kind: type[Form], config: OptimConfig, groups: list[dict[str, Any]]) -> Form:
    """Build :class:`SGD` or a form of it."""
    arguments = {key: getattr(config, key) for key in ("lr", *sorted(FORM_KEYS))}
    built: Form = construct(kind, config, groups, arguments)
    return built
