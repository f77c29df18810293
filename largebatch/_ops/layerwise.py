"""``lars_`` and ``lamb_``: a step whose rate follows each tensor's norms."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from largebatch._ops.derivatives import refuse_derivatives
from largebatch._ops.guards import call_checked
from largebatch._ops.library import Operator, notice, register
from largebatch._ops.step import StepCall, scalar

Stage = Literal["all", "sums", "update"]
BiasCorrection = Literal["none", "moments", "rate"]
STAGES: tuple[Stage, ...] = ("all", "sums", "update")
BIAS_CORRECTIONS: tuple[BiasCorrection, ...] = ("none", "moments", "rate")


class _Call(StepCall):
    """A call whose tensors have settings of their own."""

    def __init__(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        moments: Sequence[Sequence[Tensor]],
        masters: Sequence[Tensor],
        norms: Tensor,
        settings: Tensor,
        lr_factor: Tensor | None,
        grad_factor: Tensor | None,
        found_inf: Tensor | None,
        maximize: bool,
        stage: int,
    ) -> None:
        super().__init__(params, grads, moments, masters, grad_factor, found_inf, maximize)
        if norms.shape != (len(params), 3) or settings.shape != norms.shape:
            raise ValueError(f"norms and settings must have the shape ({len(params)}, 3)")
        if not 0 <= stage < len(STAGES):
            raise ValueError(f"stage {stage} is none of 0 (all), 1 (sums), 2 (update)")
        self.stage = STAGES[stage]
        self.rows, self.lr_factor = settings.tolist(), scalar(lr_factor)

    def rate(self, index: int) -> float | Tensor:
        """Return the tensor's learning rate."""
        lr: float = self.rows[index][0]
        return lr if self.lr_factor is None else lr * self.lr_factor.double()


def _square_sum(tensor: Tensor) -> Tensor:
    return tensor.double().square().sum()


def reference_lars_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    masters: Sequence[Tensor],
    norms: Tensor,
    settings: Tensor,
    *,
    lr_factor: Tensor | None,
    grad_factor: Tensor | None,
    found_inf: Tensor | None,
    momentum: float,
    trust_coefficient: float,
    eps: float,
    joint: bool,
    lr_inside: bool,
    ratio_inside: bool,
    nesterov: bool,
    maximize: bool,
    clip_ratio: bool,
    zero_is_raw: bool,
    stage: int,
) -> None:
    """Specify ``largebatch::lars_``; :func:`lars_` says what the arguments mean."""
    moments = [momentum_buffers] if momentum != 0.0 else []
    factors = lr_factor, grad_factor, found_inf
    call = _Call(params, grads, moments, masters, norms, settings, *factors, maximize, stage)
    for index, (_, decay, adapts) in enumerate(call.rows):
        old, g = call.weight(index), call.grad(index)
        if call.stage != "update":
            sums = torch.zeros_like(norms[index, :2])
            if adapts:
                sums[0] = _square_sum(old)
                sums[1] = _square_sum(g + decay * old if joint else g)
            norms[index, :2] = call.keep(sums, norms[index, :2])
        if call.stage == "sums":
            continue
        lr = call.rate(index)
        w_norm, g_norm = norms[index, 0].sqrt(), norms[index, 1].sqrt()
        adapted = (w_norm > 0) & (g_norm > 0) & bool(adapts)
        denominator = g_norm + (0.0 if joint else decay * w_norm) + eps
        ratio = trust_coefficient * w_norm / denominator
        if clip_ratio:
            ratio = torch.where(ratio < lr, ratio / lr, 1.0)
        ratio = torch.where(adapted, ratio, 1.0)
        norms[index, 2] = call.keep(ratio, norms[index, 2])
        if zero_is_raw and adapts:
            decay = decay * adapted.to(old.dtype)
        inside = (lr if lr_inside else 1.0) * (ratio if ratio_inside else torch.ones_like(ratio))
        outside = (1.0 if lr_inside else lr) * (torch.ones_like(ratio) if ratio_inside else ratio)
        step = inside.to(old.dtype) * (g + decay * old)
        if momentum != 0.0:
            old_buffer = momentum_buffers[index]
            buffer = momentum * old_buffer.to(old.dtype) + step
            step = step + momentum * buffer if nesterov else buffer
            old_buffer.copy_(call.keep(buffer.to(old_buffer.dtype), old_buffer))
        call.store(index, old - outside.to(old.dtype) * step, old)


def reference_lamb_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    first_moments: Sequence[Tensor],
    second_moments: Sequence[Tensor],
    masters: Sequence[Tensor],
    steps: Sequence[Tensor],
    norms: Tensor,
    settings: Tensor,
    *,
    lr_factor: Tensor | None,
    grad_factor: Tensor | None,
    found_inf: Tensor | None,
    beta1: float,
    beta2: float,
    eps: float,
    bias_correction: int,
    grad_averaging: bool,
    maximize: bool,
    min_ratio: float,
    max_ratio: float,
    stage: int,
) -> None:
    """Specify ``largebatch::lamb_``; :func:`lamb_` says what the arguments mean."""
    moments = [first_moments, second_moments]
    factors = lr_factor, grad_factor, found_inf
    call = _Call(params, grads, moments, masters, norms, settings, *factors, maximize, stage)
    if not 0 <= bias_correction < len(BIAS_CORRECTIONS) or not min_ratio <= max_ratio:
        raise ValueError(f"{bias_correction=}, {min_ratio=}, {max_ratio=}")
    correction = BIAS_CORRECTIONS[bias_correction]
    for index, (_, decay, adapts) in enumerate(call.rows):
        old = call.weight(index)
        first, second = first_moments[index], second_moments[index]
        if call.stage != "update":
            g = call.grad(index)
            m = beta1 * first.to(old.dtype) + (1.0 - beta1 if grad_averaging else 1.0) * g
            v = beta2 * second.to(old.dtype) + (1.0 - beta2) * g.square()
            first.copy_(call.keep(m.to(first.dtype), first))
            second.copy_(call.keep(v.to(second.dtype), second))
        number = steps[index].double() + 1.0
        correction1, correction2 = 1.0 - beta1**number, 1.0 - beta2**number
        m, v_root = first.to(old.dtype), second.to(old.dtype).sqrt()
        if correction == "moments":
            m = m * (1.0 / correction1).to(m.dtype)
            v_root = v_root * (1.0 / correction2.sqrt()).to(m.dtype)
        update = m / (v_root + eps) + decay * old
        if call.stage != "update":
            sums = torch.stack([_square_sum(old), _square_sum(update)])
            norms[index, :2] = call.keep(sums, norms[index, :2])
        if call.stage == "sums":
            continue
        w_norm, u_norm = norms[index, 0].sqrt(), norms[index, 1].sqrt()
        adapted = (w_norm > 0) & (u_norm > 0) & bool(adapts)
        ratio = torch.where(adapted, (w_norm / u_norm).clamp(min_ratio, max_ratio), 1.0)
        norms[index, 2] = call.keep(ratio, norms[index, 2])
        rate = call.rate(index) * ratio
        if correction == "rate":
            rate = rate * correction2.sqrt() / correction1
        call.store(index, old - rate.to(old.dtype) * update, old)
        steps[index].copy_(call.keep(number.to(steps[index].dtype), steps[index]))


def _fake(*_arguments: Any, **_options: Any) -> None:
    return None


register(
    Operator(
        "lars_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, "
        "Tensor(c!)[] masters, Tensor(d!) norms, Tensor settings, *, Tensor? lr_factor, "
        "Tensor? grad_factor, Tensor? found_inf, float momentum, float trust_coefficient, "
        "float eps, bool joint, bool lr_inside, bool ratio_inside, bool nesterov, bool maximize, "
        "bool clip_ratio, bool zero_is_raw, int stage) -> ()",
        reference_lars_,
        _fake,
        host=("settings",),
    ),
    Operator(
        "lamb_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] first_moments, "
        "Tensor(c!)[] second_moments, Tensor(d!)[] masters, Tensor(e!)[] steps, Tensor(f!) norms, "
        "Tensor settings, *, Tensor? lr_factor, Tensor? grad_factor, Tensor? found_inf, "
        "float beta1, float beta2, float eps, int bias_correction, bool grad_averaging, "
        "bool maximize, float min_ratio, float max_ratio, int stage) -> ()",
        reference_lamb_,
        _fake,
        host=("settings",),
    ),
)


def lars_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    masters: Sequence[Tensor],
    norms: Tensor,
    settings: Tensor,
    *,
    lr_factor: Tensor | None = None,
    grad_factor: Tensor | None = None,
    found_inf: Tensor | None = None,
    momentum: float = 0.9,
    trust_coefficient: float = 0.001,
    eps: float = 0.0,
    joint: bool = False,
    lr_inside: bool = True,
    ratio_inside: bool = True,
    nesterov: bool = False,
    maximize: bool = False,
    clip_ratio: bool = False,
    zero_is_raw: bool = False,
    stage: Stage = "all",
    reference: bool = False,
) -> None:
    """Take one step of LARS on every parameter (You, Gitman and Ginsburg 2017, algorithm 1).

    With g = ±``grad_factor`` x grad, b the weight decay and w the parameter::

        ratio = trust_coefficient |w| / (|g| + b |w| + eps)      (joint: / (|g + b w| + eps))
        d = [lr] [ratio] (g + b w);   v <- momentum v + d
        w <- w - [lr] [ratio] (d + momentum v if nesterov else v)

    where ``lr_inside`` and ``ratio_inside`` say in which line each factor stands. The ratio is 1
    where a norm is zero or not a number, and where the tensor does not adapt.

    Args:
        params: N tensors of one device, float32, float64, float16 or bfloat16, any layout.
        grads: their gradients, of the same shapes and types.
        momentum_buffers: float64 for float64, else float32 or bfloat16; empty if momentum is 0.
        masters: empty, or a float32 copy of each 16-bit parameter (a tensor without elements for
            other parameters). The step is taken on the copy, and the parameter is rounded from it.
        norms: (N, 3) float64 on the device; receives sum of w^2, sum of g^2 (joint: of
            (g + b w)^2) and the ratio.
        settings: (N, 3) float64 on the CPU: learning rate, weight decay, 1 where the tensor adapts.
        lr_factor: one float32 or float64 on the device; multiplies every rate.
        grad_factor: one float32 or float64 on the device: clip factor x 1 / loss scale.
        found_inf: one float32 on the device; if it is not 0 the call changes nothing.
        clip_ratio: ratio <- min(ratio / lr, 1), as apex's LARC.
        zero_is_raw: if a norm is zero, the gradient is used unchanged, without decay, as in LARC.
        stage: ``sums`` only writes the sums of ``norms``; ``update`` reads them. In between, ranks
            that hold parts of a tensor add their sums.
        reference: use the reference even if there is a kernel.
    """
    if not params:
        return
    refuse_derivatives("lars_", params, grads)
    if not reference:
        notice("lars_", params)
    run = partial(call_checked, torch.ops.largebatch.lars_) if not reference else reference_lars_
    run(
        params,
        grads,
        momentum_buffers,
        masters,
        norms,
        settings,
        lr_factor=lr_factor,
        grad_factor=grad_factor,
        found_inf=found_inf,
        momentum=momentum,
        trust_coefficient=trust_coefficient,
        eps=eps,
        joint=joint,
        lr_inside=lr_inside,
        ratio_inside=ratio_inside,
        nesterov=nesterov,
        maximize=maximize,
        clip_ratio=clip_ratio,
        zero_is_raw=zero_is_raw,
        stage=STAGES.index(stage),
    )


def lamb_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    first_moments: Sequence[Tensor],
    second_moments: Sequence[Tensor],
    masters: Sequence[Tensor],
    steps: Sequence[Tensor],
    norms: Tensor,
    settings: Tensor,
    *,
    lr_factor: Tensor | None = None,
    grad_factor: Tensor | None = None,
    found_inf: Tensor | None = None,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-6,
    bias_correction: BiasCorrection = "moments",
    grad_averaging: bool = True,
    maximize: bool = False,
    min_ratio: float = 0.0,
    max_ratio: float = float("inf"),
    stage: Stage = "all",
    reference: bool = False,
) -> None:
    """Take one step of LAMB on every parameter (You et al. 2020, algorithm 2).

    With g = ±``grad_factor`` x grad, b the weight decay, w the parameter and t its step number::

        m <- beta1 m + (1 - beta1) g;   v <- beta2 v + (1 - beta2) g^2
        u = [m / (1 - beta1^t)] / (sqrt[v / (1 - beta2^t)] + eps) + b w
        w <- w - lr clamp(|w| / |u|, min_ratio, max_ratio) u

    The ratio is 1 where a norm is zero or not a number, and where the tensor does not adapt.

    Args:
        params, grads, masters, settings, lr_factor, grad_factor, found_inf, stage,
            reference: as in :func:`lars_`.
        first_moments, second_moments: float64 for float64 parameters, else float32 or bfloat16.
        steps: one 0-d float32 a parameter, on the device: the steps taken; the call adds 1.
        norms: (N, 3) float64 on the device; receives sum of w^2, sum of u^2 and the ratio.
        bias_correction: ``moments`` as above; ``none`` leaves the brackets out; ``rate`` too, and
            multiplies lr by sqrt(1 - beta2^t) / (1 - beta1^t) instead, as DeepSpeed does.
        grad_averaging: False: the gradient enters the first moment times 1.
    """
    if not params:
        return
    refuse_derivatives("lamb_", params, grads)
    if not reference:
        notice("lamb_", params)
    run = partial(call_checked, torch.ops.largebatch.lamb_) if not reference else reference_lamb_
    run(
        params,
        grads,
        first_moments,
        second_moments,
        masters,
        steps,
        norms,
        settings,
        lr_factor=lr_factor,
        grad_factor=grad_factor,
        found_inf=found_inf,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        bias_correction=BIAS_CORRECTIONS.index(bias_correction),
        grad_averaging=grad_averaging,
        maximize=maximize,
        min_ratio=min_ratio,
        max_ratio=max_ratio,
        stage=STAGES.index(stage),
    )
