"""What every optimizer of this room asks of parameters and gradients."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from largebatch._errors import UserError
from largebatch.distributed.sharding import is_sharded

SIXTEEN_BIT = (torch.float16, torch.bfloat16)
SUPPORTED = (torch.float32, torch.float64, *SIXTEEN_BIT)


def check_types(name: str, params: Iterable[Tensor]) -> None:
    """Refuse parameters that are no real floating-point numbers.

    Raises:
        UserError: naming the optimizer ``name`` and the type.
    """
    for param in params:
        if param.dtype not in SUPPORTED:
            raise UserError(
                f"{name}: parameters of type {param.dtype}; float32, float64, float16 or bfloat16"
            )


def check_dense(name: str, grads: Iterable[Tensor]) -> None:
    """Refuse sparse gradients.

    Raises:
        UserError: naming ``name``, an optimizer or a function.
    """
    if any(grad.layout != torch.strided for grad in grads):
        raise UserError(
            f"{name}: sparse gradients; make them dense (nn.Embedding(..., sparse=False)) or give"
            " such parameters to torch.optim.SGD"
        )


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a DTensor, as FSDP2 makes them; any other tensor as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor
