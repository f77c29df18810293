"""What every optimizer of this room asks of parameters and gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from largebatch._errors import UserError
from largebatch.distributed.sharding import is_sharded

SIXTEEN_BIT = frozenset({torch.float16, torch.bfloat16})
SUPPORTED = frozenset({torch.float32, torch.float64, *SIXTEEN_BIT})


def check_types(name: str, params: Iterable[Tensor]) -> None:
    """Refuse parameters that are no real floating-point numbers, or that nothing may change.

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
    """Return :func:`local` of each, looking only at the types of ``like``, which go with them."""
    return [local(tensor) for tensor in tensors] if any_sharded(like) else list(tensors)


def any_sharded(tensors: Iterable[Tensor]) -> bool:
    """Tell whether one is a DTensor; of each class one is looked at."""
    return any(is_sharded(each) for each in {type(tensor): tensor for tensor in tensors}.values())


def tell_autograd(params: Sequence[Tensor]) -> None:
    """Count a change of parameters that a kernel has made.

    A backward pass through what they were before then raises, as after a step of torch's. A
    compiled graph counts by itself.
    """
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(params)
