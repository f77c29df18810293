"""``sgd_``: one step of SGD in every form in use, on a list of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from largebatch._ops.derivatives import refuse_derivatives
from largebatch._ops.guards import call_checked
from largebatch._ops.library import Operator, notice, register
from largebatch._ops.step import StepCall


def reference_sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    masters: Sequence[Tensor] = (),
    *,
    grad_factor: Tensor | None,
    found_inf: Tensor | None,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    decoupled: bool,
    nesterov: bool,
    maximize: bool,
    lr_inside_momentum: bool,
    buffer_factor: float,
) -> None:
    """Specify ``largebatch::sgd_``; :func:`sgd_` says what the arguments mean."""
    moments = [momentum_buffers] if momentum != 0.0 else []
    call = StepCall(params, grads, moments, masters, grad_factor, found_inf, maximize)
    inner, outer = (lr, 1.0) if lr_inside_momentum else (1.0, lr)
    for index in range(len(params)):
        old = call.weight(index)
        step = inner * (call.grad(index) + (0.0 if decoupled else weight_decay) * old)
        if momentum != 0.0:
            old_buffer = momentum_buffers[index]
            buffer = momentum * buffer_factor * old_buffer.to(old.dtype) + (1.0 - dampening) * step
            step = step + momentum * buffer if nesterov else buffer
            old_buffer.copy_(call.keep(buffer.to(old_buffer.dtype), old_buffer))
        kept = old - (lr * weight_decay if decoupled else 0.0) * old
        call.store(index, kept - outer * step, old)


def _fake_sgd_(*_arguments: Any, **_options: Any) -> None:
    return None


register(
    Operator(
        "sgd_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, "
        "Tensor(c!)[] masters, *, Tensor? grad_factor, Tensor? found_inf, float lr, "
        "float momentum, float dampening, float weight_decay, bool decoupled, bool nesterov, "
        "bool maximize, bool lr_inside_momentum, float buffer_factor) -> ()",
        reference_sgd_,
        _fake_sgd_,
    )
)


def sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    masters: Sequence[Tensor] = (),
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    nesterov: bool = False,
    maximize: bool = False,
    lr_inside_momentum: bool = False,
    buffer_factor: float = 1.0,
    grad_factor: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """Take one step of SGD on every parameter, in one pass over memory.

    With g = ±``grad_factor`` x grad + ``weight_decay`` x p (minus where ``maximize``) and step
    s = g, or ``lr`` x g where ``lr_inside_momentum``::

        b <- momentum x buffer_factor x b + (1 - dampening) x s
        p <- p - (lr x) (s + momentum x b if nesterov else b)

    where the outer ``lr`` is left out if it is inside. ``dampening`` = ``momentum`` is the damped
    form, ``lr_inside_momentum`` the form whose buffer holds the last displacement, and
    ``buffer_factor`` = lr / previous lr is the momentum correction (Goyal et al. 2017, section 3).
    ``decoupled`` takes the decay out of g and p down by ``lr`` x ``weight_decay`` x p instead.

    Args:
        params: tensors of one device, float32, float64, float16 or bfloat16, any layout.
        grads: their gradients, of the same shapes and types.
        momentum_buffers: float64 for float64, else float32 or bfloat16; empty if momentum is 0.
        masters: empty, or a float32 copy of each 16-bit parameter, without elements for those that
            have none. The step is taken on it, and the parameter rounded from it.
        grad_factor: one float32 or float64 on the device: clip factor, 1 / loss scale.
        found_inf: one float32 on the device; where it is not 0 the call changes nothing.
    """
    if not params:
        return
    refuse_derivatives("sgd_", params, grads)
    notice("sgd_", params)
    call_checked(
        torch.ops.largebatch.sgd_,
        params,
        grads,
        momentum_buffers,
        masters,
        grad_factor=grad_factor,
        found_inf=found_inf,
        lr=lr,
        momentum=momentum,
        dampening=dampening,
        weight_decay=weight_decay,
        decoupled=decoupled,
        nesterov=nesterov,
        maximize=maximize,
        lr_inside_momentum=lr_inside_momentum,
        buffer_factor=buffer_factor,
    )
