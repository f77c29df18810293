"""Derivatives of the operators in every mode of torch: reverse, forward, and ``torch.func``'s."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from largebatch._ops.library import _LIBRARY


def register_autograd(
    name: str,
    backward: Callable[..., Any],
    setup_context: Callable[..., None],
    differentiable: Callable[..., Any],
) -> None:
    """Give operator ``name`` its derivatives.

    ``torch.library.register_autograd`` supports reverse mode outside of ``torch.func`` only: inside
    it raises, and it drops tangents of forward mode. This rule serves one level of ``torch.func``
    at a time, as the rules of torch's own operators do. Forward mode is left to torch's operations.

    Args:
        backward: backward function, as for ``torch.autograd.Function``.
        setup_context: context function, as for ``torch.autograd.Function``.
        differentiable: computes the operator from its arguments by operations that torch can
            differentiate. Used in place of the operator if an argument has a tangent.
    """
    operator = getattr(torch.ops.largebatch, name).default

    def compute(*args_and_keys: Any) -> Any:
        *args, keys = args_and_keys
        with torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keys & torch._C._after_autograd_keyset, *args)

    class Rule(_SingleLevelFunction):
        @staticmethod
        def forward(*args_and_keys: Any) -> Any:
            if not torch._C._are_functorch_transforms_active():
                return compute(*args_and_keys)
            # Only this level is done with; the levels below record what they see.
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                return compute(*args_and_keys)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            setup_context(ctx, inputs[:-1], output)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
            return (*backward(ctx, *grads), None)

    Rule.__name__ = f"{name}_rule"

    def derive(keys: Any, *args: Any) -> Any:
        if has_tangent(args):
            return differentiable(*args)
        if not (torch.is_grad_enabled() and torch._C._any_requires_grad(*args)):
            return compute(*args, keys)
        if not torch._C._are_functorch_transforms_active():
            return Rule.apply(*args, keys)  # type: ignore[attr-defined]
        with enable_single_level_autograd_function():
            return Rule.apply(*args, keys)  # type: ignore[attr-defined]

    _LIBRARY.impl(name, derive, "Autograd", with_keyset=True)


def has_tangent(args: Iterable[Any]) -> bool:
    """Return whether forward mode differentiates by any of ``args``."""
    if forward_ad._current_level < 0:
        return False
    tensors = (arg for arg in args if isinstance(arg, Tensor))
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


def refuse_derivatives(name: str, *tensors: Iterable[Tensor]) -> None:
    """Refuse a call for which torch would silently give zeros as derivatives.

    Raises:
        RuntimeError: forward mode or ``torch.func`` differentiates by one of ``tensors``.
    """
    if torch.compiler.is_compiling():
        return
    transformed = torch._C._are_functorch_transforms_active() and torch.is_grad_enabled()
    for one in tensors:
        if has_tangent(one) or (transformed and any(tensor.requires_grad for tensor in one)):
            raise RuntimeError(
                f"largebatch::{name} has no derivative: call it outside of torch.func and of"
                " forward mode, or on tensors that are not differentiated"
            )


def register_refusal(name: str) -> None:
    """Make operator ``name`` refuse derivatives as :func:`refuse_derivatives` does.

    Not for operators that take lists of tensors: a Python kernel would be too slow for them.
    """
    operator = getattr(torch.ops.largebatch, name).default

    def refuse(keys: Any, *args: Any) -> Any:
        refuse_derivatives(name, [arg for arg in args if isinstance(arg, Tensor)])
        with torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keys & torch._C._after_autograd_keyset, *args)

    _LIBRARY.impl(name, refuse, "Autograd", with_keyset=True)
