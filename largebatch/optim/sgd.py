"""SGD with momentum in every form in use, as one pass over memory.

Forms: undamped with the rate outside the buffer (PyTorch), damped (Lua Torch's default), the rate
inside the buffer (Caffe, TensorFlow, the original heavy ball) with or without the momentum
correction of Goyal et al. 2017 (section 3), and Nesterov's in PyTorch's variables. Polyak 1964;
Nesterov 1983; Sutskever et al. 2013.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Set
from typing import Any, TypeVar

import torch
from torch import Tensor

from largebatch import _ops
from largebatch._errors import UserError
from largebatch.optim.closure import loss_of
from largebatch.optim.config import OptimConfig
from largebatch.optim.construct import construct
from largebatch.optim.lr_correction import corrected_rate
from largebatch.optim.parameters import check_dense, check_types, local
from largebatch.optim.registry import optimizers
from largebatch.optim.scaling import gradient_factor
from largebatch.optim.state import (
    begin_state,
    check_state_dtype,
    moment_dtype,
    restore_exactly,
)

OWN_SETTINGS = (
    "decoupled_weight_decay",
    "lr_inside_momentum",
    "momentum_correction",
    "dampen_first_step",
    "previous_lr",
    "imitated_decay",
    "decayed_norm",
    "decayed_buffer",
    "master_weights",
    "state_dtype",
)


class SGD(torch.optim.Optimizer):
    """Multi-tensor SGD; takes the place of ``torch.optim.SGD``.

    Under ``torch.amp.GradScaler`` the step unscales and skips by itself, on the device.

    Args:
        params: parameters, named parameters or groups of them, float32, float64, float16 or
            bfloat16.
        lr: learning rate.
        momentum: factor of the buffer per step.
        dampening: the gradient enters the buffer times 1 - ``dampening``.
        weight_decay: L2 term, added to the gradient as ``weight_decay`` x parameter.
        nesterov: Nesterov's form; needs ``momentum`` and no ``dampening``.
        decoupled_weight_decay: p <- p - lr ``weight_decay`` p instead, outside gradient and buffer
            (see :class:`largebatch.optim.SGDW`).
        maximize: ascend.
        lr_inside_momentum: b <- momentum b + lr g; p <- p - b, instead of p <- p - lr b.
        momentum_correction: b <- momentum (lr / previous lr) b + lr g, which makes the rate
            inside the buffer equal to the rate outside it.
        imitated_decay: instead of decaying, raise the rate so that weights in front of a norm take
            the directions that they would take under this ``weight_decay``
            (``largebatch.optim.lr_correction``); for groups of such weights alone.
        dampen_first_step: with ``dampening``, the buffer starts as an average at zero; PyTorch
            (False) starts it at the first gradient.
        master_weights, state_dtype: as in :class:`largebatch.optim.LARS`.
        fused: True demands the compiled kernel, False the reference; None takes what there is.

    Attributes:
        grad_factor: a 0-d tensor that multiplies the gradients of the next step, such as the clip
            factor of :func:`largebatch.optim.clip_gradients`; the step sets it back to None.

    Raises:
        UserError: a hyperparameter out of range, complex parameters, sparse gradients.
        RuntimeError: ``fused=True`` where the compiled kernel is absent.
    """

    grad_factor: Tensor | None = None
    _step_supports_amp_scaling = True

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
    ) -> None:
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

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as torch does, having checked its hyperparameters and parameters."""
        super().add_param_group(param_group)
        try:
            self._check(self.param_groups[-1])
        except Exception:
            del self.param_groups[-1]
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # state of torch.optim.SGD lacks our settings
            for key in OWN_SETTINGS:
                group.setdefault(key, self.defaults[key])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load state bit by bit, masters included, also that of ``torch.optim.SGD``."""
        super().load_state_dict(state_dict)
        restore_exactly(self, state_dict)
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state.get(param, {})
                if state.get("momentum_buffer") is None:
                    state.pop("momentum_buffer", None)
                else:
                    dtype = moment_dtype(param, group)
                    state["momentum_buffer"] = state["momentum_buffer"].to(dtype)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; return the loss of ``closure``, which may compute it anew."""
        loss = loss_of(closure)
        factor = gradient_factor(self)
        for group in self.param_groups:
            self._step_group(group, factor)
        return loss

    def _step_group(self, group: dict[str, Any], factor: Tensor | None) -> None:
        params = [param for param in group["params"] if param.grad is not None]
        if not params:
            return
        lr, momentum, dampening = float(group["lr"]), group["momentum"], group["dampening"]
        starts_undamped = momentum != 0.0 and dampening != 0.0 and not group["dampen_first_step"]
        names = ("momentum_buffer",) if momentum != 0.0 else ()
        fresh = [param for param in params if not self.state[param].keys() >= set(names)]
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        # Only what the host keeps count of, the first step and earlier rates, has to know
        # whether this step is skipped; everything else leaves that to the device.
        counts = group["momentum_correction"] or group["imitated_decay"]
        if found_inf is not None and (counts or (starts_undamped and fresh)):
            if found_inf.item() != 0:
                return
            found_inf = None
        if group["imitated_decay"]:
            lr = corrected_rate(group, lr)
        buffer_factor = 1.0
        if group["momentum_correction"]:
            previous = group["previous_lr"]
            buffer_factor = lr / previous if previous else 1.0
            group["previous_lr"] = lr
        for param in params:
            begin_state(param, self.state[param], names, group)
        if starts_undamped and fresh:
            new = set(map(id, fresh))
            settled = [param for param in params if id(param) not in new]
            parts = [(fresh, 0.0), (settled, dampening)]
        else:
            parts = [(params, dampening)]
        for part, part_dampening in parts:
            for same_device in _by_device(part):
                self._call(same_device, group, lr, part_dampening, buffer_factor, factor, found_inf)

    def _call(
        self,
        params: list[Tensor],
        group: dict[str, Any],
        lr: float,
        dampening: float,
        buffer_factor: float,
        factor: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        device = params[0].device
        grads: list[Tensor] = []
        for param in params:
            assert param.grad is not None
            grads.append(param.grad)
        check_dense(type(self).__name__, grads)
        states = [self.state[param] for param in params]
        has_buffers = group["momentum"] != 0.0
        masters: list[Tensor] = []
        if any("master" in state for state in states):
            absent = torch.empty(0, device=device)
            masters = [local(state.get("master", absent)) for state in states]
        run = _ops.reference_sgd_ if group["fused"] is False else _ops.sgd_
        run(
            [local(param) for param in params],
            [local(grad) for grad in grads],
            [local(state["momentum_buffer"]) for state in states if has_buffers],
            masters,
            lr=lr,
            momentum=group["momentum"],
            dampening=dampening,
            weight_decay=group["weight_decay"],
            decoupled=group["decoupled_weight_decay"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            lr_inside_momentum=group["lr_inside_momentum"],
            buffer_factor=buffer_factor,
            grad_factor=None if factor is None else factor.to(device),
            found_inf=None if found_inf is None else found_inf.to(device),
        )

    def _check(self, group: dict[str, Any]) -> None:
        """Refuse hyperparameters out of range and parameters that cannot be stepped."""
        name = type(self).__name__
        for key in ("lr", "momentum", "weight_decay", "imitated_decay"):
            if not 0.0 <= float(group[key]) < math.inf:
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


def _by_device(params: list[Tensor]) -> list[list[Tensor]]:
    parts: dict[torch.device, list[Tensor]] = {}
    for param in params:
        parts.setdefault(param.device, []).append(param)
    return list(parts.values())


Form = TypeVar("Form", bound=SGD)


@optimizers.register(
    "sgd",
    "SGD with momentum, Nesterov, dampening, the rate inside or outside the buffer",
    "Polyak 1964; Nesterov 1983; Goyal et al. 2017, section 3",
)
def build_sgd(config: OptimConfig, groups: list[dict[str, Any]]) -> SGD:
    """Build :class:`SGD` from the config."""
    return build_form(SGD, config, groups, {"lr_correction"})


def build_form(
    kind: type[Form],
    config: OptimConfig,
    groups: list[dict[str, Any]],
    own: Set[str] = frozenset(),
) -> Form:
    """Build :class:`SGD` or a form of it; ``own`` are the keys that it alone takes."""
    used = {"momentum", "nesterov", "dampening", "dampen_first_step"}
    used |= {"lr_inside_momentum", "momentum_correction"}
    config.refuse_unused(used | own | {"momentum_half_life"})
    arguments = {key: getattr(config, key) for key in ("lr", *sorted(used))}
    built: Form = construct(kind, config, groups, arguments)
    return built
