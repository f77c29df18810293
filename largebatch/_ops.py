"""The operators of largebatch: schemas, loading of the compiled kernels, references, fake kernels.

Every operator lives in ``torch.ops.largebatch`` and has up to three faces: the reference below
(plain PyTorch: the specification, and the fallback for every device without a kernel), a CPU kernel
and a CUDA kernel (``csrc``, in ``largebatch._C``). ``LARGEBATCH_OPS=compiled|reference`` forces a
face; ``compiled`` raises where the library is absent.

The functions of this module (``sgd_``, ``global_norm``, ``clip_factor``) call the operators; they
are traced whole by ``torch.compile`` and never wait for the device.
"""

from __future__ import annotations

import functools
import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from largebatch._errors import UserError

SCHEMAS = {
    "sgd_": (
        "sgd_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, *, "
        "Tensor? grad_factor, Tensor? found_inf, float lr, float momentum, float dampening, "
        "float weight_decay, bool nesterov, bool maximize, bool lr_inside_momentum, "
        "float buffer_factor) -> ()"
    ),
    "global_norm": "global_norm(Tensor[] tensors) -> Tensor",
    "clip_factor": "clip_factor(Tensor[] tensors, float max_norm) -> (Tensor, Tensor)",
}

LIBRARY = Path(__file__).with_name("_C.abi3.so")
BUILD_RECORD = Path(__file__).with_name("_build.json")


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type of the arithmetic and of the state kept for tensors of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# --- References: the specification of each operator --------------------------------------------


def reference_sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    *,
    grad_factor: Tensor | None,
    found_inf: Tensor | None,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    lr_inside_momentum: bool,
    buffer_factor: float,
) -> None:
    """Specify ``largebatch::sgd_``; :func:`sgd_` says what the arguments mean."""
    inner, outer = (lr, 1.0) if lr_inside_momentum else (1.0, lr)
    for index, (param, grad) in enumerate(zip(params, grads, strict=True)):
        dtype = accumulate_dtype(param.dtype)
        old = param.to(dtype)
        g = grad.to(dtype)
        if grad_factor is not None:
            g = g * grad_factor.to(dtype)
        g = (-g if maximize else g) + weight_decay * old
        step = inner * g
        if momentum != 0.0:
            old_buffer = momentum_buffers[index]
            buffer = momentum * buffer_factor * old_buffer + (1.0 - dampening) * step
            step = step + momentum * buffer if nesterov else buffer
            if found_inf is not None:
                buffer = torch.where(found_inf != 0, old_buffer, buffer)
            old_buffer.copy_(buffer)
        new = old - outer * step
        if found_inf is not None:
            new = torch.where(found_inf != 0, old, new)
        param.copy_(new)


def reference_global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Specify ``largebatch::global_norm``: squares and sums in float64, one rounding at the end."""
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    squares = [tensor.detach().double().square().sum() for tensor in tensors]
    norm = torch.stack(squares).sum().sqrt()
    return norm if wide else norm.float()


def reference_clip_factor(tensors: Sequence[Tensor], max_norm: float) -> tuple[Tensor, Tensor]:
    """Specify ``largebatch::clip_factor``: the norm, and min(1, max_norm / (norm + 1e-6))."""
    norm = reference_global_norm(tensors)
    factor = torch.clamp(max_norm / (norm.double() + 1e-6), max=1.0)
    return norm, factor.to(norm.dtype)


REFERENCES: dict[str, Callable[..., Any]] = {
    "sgd_": reference_sgd_,
    "global_norm": reference_global_norm,
    "clip_factor": reference_clip_factor,
}


# --- Fake kernels: shapes and types without values, for torch.compile ----------------------------


def _fake_sgd_(*_arguments: Any, **_options: Any) -> None:
    return None


def _fake_global_norm(tensors: Sequence[Tensor]) -> Tensor:
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return tensors[0].new_empty((), dtype=torch.float64 if wide else torch.float32)


def _fake_clip_factor(tensors: Sequence[Tensor], max_norm: float) -> tuple[Tensor, Tensor]:
    return _fake_global_norm(tensors), _fake_global_norm(tensors)


FAKES: dict[str, Callable[..., Any]] = {
    "sgd_": _fake_sgd_,
    "global_norm": _fake_global_norm,
    "clip_factor": _fake_clip_factor,
}


# --- Loading -------------------------------------------------------------------------------------


def _load() -> str:
    """Load the compiled library as ``LARGEBATCH_OPS`` asks; return why it is absent, or ''."""
    wish = os.environ.get("LARGEBATCH_OPS", "")
    if wish not in ("", "compiled", "reference"):
        raise UserError(f"LARGEBATCH_OPS={wish!r}: choose compiled or reference, or leave it unset")
    if wish == "reference":
        return "LARGEBATCH_OPS=reference"
    reason = str(build_record().get("compiled", "not built: run pip install -e ."))
    if LIBRARY.exists():
        try:
            torch.ops.load_library(str(LIBRARY))
            return ""
        except OSError as error:
            reason = f"{LIBRARY.name} does not load: {' '.join(str(error).split())}"
    if wish == "compiled":
        raise ImportError(f"LARGEBATCH_OPS=compiled, but the compiled ops are absent: {reason}")
    return reason


def build_record() -> dict[str, Any]:
    """Return what the build wrote down: which parts it left out, and why."""
    if not BUILD_RECORD.exists():
        return {}
    return dict(json.loads(BUILD_RECORD.read_text(encoding="utf-8")))


def _register(absent: str) -> torch.library.Library:
    """Define what the compiled library did not, and add references and fake kernels."""
    library = torch.library.Library("largebatch", "FRAGMENT")
    for name, schema in SCHEMAS.items():
        if absent:
            library.define(schema)
        # Kernels for a device go before this one, which therefore serves all other devices.
        library.impl(name, REFERENCES[name], "CompositeExplicitAutograd")
        torch.library.register_fake(f"largebatch::{name}", FAKES[name], lib=library)
    return library


_ABSENT = _load()
_LIBRARY = _register(_ABSENT)


def face() -> Literal["compiled", "reference"]:
    """Return which face serves CPU tensors in this process."""
    return "reference" if _ABSENT else "compiled"


def backends() -> dict[str, dict[str, str]]:
    """Return, for each operator, ``{face: "yes" or the reason why it is absent}``."""
    no_cuda = _ABSENT or str(build_record().get("cuda", "built without CUDA kernels"))

    def state(name: str, key: str, reason: str) -> str:
        has = torch._C._dispatch_has_kernel_for_dispatch_key(f"largebatch::{name}", key)
        return "yes" if has else reason

    return {
        name: {
            "reference": "yes",
            "cpu": state(name, "CPU", _ABSENT),
            "cuda": state(name, "CUDA", no_cuda),
        }
        for name in SCHEMAS
    }


def is_compiled(name: str, device: torch.device) -> bool:
    """Return whether operator ``name`` has a compiled kernel for ``device``."""
    return _kernel_exists(name, device.type.upper())


@functools.cache
def _kernel_exists(name: str, key: str) -> bool:
    return key in ("CPU", "CUDA") and bool(
        torch._C._dispatch_has_kernel_for_dispatch_key(f"largebatch::{name}", key)
    )


@functools.cache
def _say_once(device_type: str) -> None:
    reason = _ABSENT or str(build_record().get("cuda", "built without CUDA kernels"))
    if reason != "LARGEBATCH_OPS=reference":
        warnings.warn(
            f"largebatch uses its reference ops on {device_type} ({reason}); they are slower",
            stacklevel=3,
        )


def _notice(name: str, tensors: Sequence[Tensor]) -> None:
    if tensors and not torch.compiler.is_compiling():
        device = tensors[0].device
        if device.type in ("cpu", "cuda") and not is_compiled(name, device):
            _say_once(device.type)


# --- Operators -----------------------------------------------------------------------------------


def sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
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

    Args:
        params: tensors of one device, float32, float64, float16 or bfloat16, any layout.
        grads: their gradients, of the same shapes and types.
        momentum_buffers: float64 for float64 parameters, else float32; empty if momentum is 0.
        grad_factor: one float32 or float64 on the device: clip factor, 1 / loss scale.
        found_inf: one float32 on the device; where it is not 0 the call changes nothing.
    """
    if not params:
        return
    _notice("sgd_", params)
    torch.ops.largebatch.sgd_(
        params,
        grads,
        momentum_buffers,
        grad_factor=grad_factor,
        found_inf=found_inf,
        lr=lr,
        momentum=momentum,
        dampening=dampening,
        weight_decay=weight_decay,
        nesterov=nesterov,
        maximize=maximize,
        lr_inside_momentum=lr_inside_momentum,
        buffer_factor=buffer_factor,
    )


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of all elements of ``tensors`` (one device) together.

    The sum runs in float64 over fixed chunks in a fixed order, so that the thread count does not
    change its bits. Returns a 0-d tensor: float64 if any input is, else float32; 0 for none.
    """
    if not tensors:
        return torch.zeros(())
    _notice("global_norm", tensors)
    return torch.ops.largebatch.global_norm(tensors)


def clip_factor(tensors: Sequence[Tensor], max_norm: float) -> tuple[Tensor, Tensor]:
    """Return :func:`global_norm` and the factor min(1, ``max_norm`` / (norm + 1e-6)), both 0-d."""
    if not tensors:
        return torch.zeros(()), torch.ones(())
    _notice("clip_factor", tensors)
    norm, factor = torch.ops.largebatch.clip_factor(tensors, max_norm)
    return norm, factor
