"""Checks of parameters and gradients that every optimizer of this package makes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from largebatch._errors import UserError
from largebatch.distributed.sharding import is_sharded

SIXTEEN_BIT = frozenset({torch.float16, torch.bfloat16})
SUPPORTED = frozenset({torch.float32, torch.float64, *SIXTEEN_BIT})


def check_types(name: str, params: Iterable[Tensor]) -> None:
    """Refuse parameters that are not real floating-point tensors, or that must not be changed.

    Raises:
        UserError: naming the optimizer ``name`` and the type.
    """
    for param in params:
        if param.dtype not in SUPPORTED:
            raise UserError(
                f"{name}: parameters of type {param.dtype}; float32, float64, float16 or bfloat16"
            )
        if param.is_inference() and not torch.is_inference_mode_enabled():
            raise UserError(
                f"{name}: a parameter made under torch.inference_mode(), which nothing outside it "
                "may change; give its clone to the model"
            )


def check_dense(name: str, grads: Iterable[Tensor]) -> None:
    """Refuse sparse gradients.

    Raises:
        UserError: naming ``name``, an optimizer or a function.
    """
    if {grad.layout for grad in grads} - {torch.strided}:
        raise UserError(
            f"{name}: sparse gradients; make them dense (nn.Embedding(..., sparse=False)) or give"
            " such parameters to torch.optim.SGD"
        )


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a DTensor, as FSDP2 makes them; any other tensor as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def locals_of(tensors: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """Return :func:`local` of each tensor; the types are looked up in ``like``, its counterpart."""
    return [local(tensor) for tensor in tensors] if any_sharded(like) else list(tensors)


def any_sharded(tensors: Iterable[Tensor]) -> bool:
    """Return whether any tensor is a DTensor; one tensor of each class is looked at."""
    return any(is_sharded(each) for each in {type(tensor): tensor for tensor in tensors}.values())


def tell_autograd(params: Sequence[Tensor]) -> None:
    """Tell autograd that a kernel has changed parameters in place.

    A backward pass that needs the old values then raises, as after a step of torch's optimizers. In
    a compiled graph torch keeps this count by itself.
    """
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(params)
