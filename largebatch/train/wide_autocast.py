"""bfloat16 autocast for processors without bfloat16 arithmetic, computed in float32.

On such processors torch emulates a bfloat16 convolution, at a third of float32's speed. bfloat16
arithmetic multiplies exactly and adds in float32. float32 arithmetic on operands rounded to
bfloat16 does the same. Results and gradients are rounded where autocast rounds them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# Those that autocast runs in low precision on a CPU, but attention, which is more than a product.
PRODUCTS = {
    *(torch.conv1d, torch.conv2d, torch.conv3d),
    *(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
    *(functional.linear, torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm),
    *(Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm, Tensor.addmm, Tensor.baddbmm),
}


def is_emulated() -> bool:
    """Return whether this processor is known to have no arithmetic for bfloat16."""
    tell = getattr(torch.cpu, "get_capabilities", None)  # older versions of torch have none
    found: dict[str, Any] = tell() if tell is not None else {}
    return found.get("architecture") == "x86_64" and not (
        found.get("avx512_bf16") or found.get("amx_bf16")
    )


class WideAutocast(TorchFunctionMode):
    """Autocast to bfloat16 on a CPU, with products of tensors computed as described above."""

    def __init__(self) -> None:
        super().__init__()
        self._autocast = torch.autocast("cpu", torch.bfloat16)

    def __enter__(self) -> WideAutocast:
        """Begin; a forward pass runs inside."""
        self._autocast.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """End both."""
        super().__exit__(*error)
        self._autocast.__exit__(*error)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run ``func``, a product or anything else."""
        named = kwargs or {}
        if func not in PRODUCTS:
            return func(*args, **named)
        with torch.autocast("cpu", enabled=False):
            product = func(
                *(_rounded(value) for value in args),
                **{name: _rounded(value) for name, value in named.items()},
            )
        return product.to(torch.bfloat16) if product.dtype == torch.float32 else product


def _rounded(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in (torch.float32, torch.bfloat16):
        return value.to(torch.bfloat16).float()
    return value
