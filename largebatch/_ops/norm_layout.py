"""The memory layouts of the batch norm operators, and the bits of a ReLU's mask in them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def in_layout(x: Tensor) -> Tensor:
    """Return ``x`` with its values in one of the two layouts that kernels know."""
    if x.is_contiguous() or x.movedim(1, -1).is_contiguous():
        return x
    return x.contiguous()


def in_layout_of(x: Tensor, values: Tensor) -> Tensor:
    """Return ``values`` in the type and layout of ``x``, by operations that vmap knows as well."""
    values = values.to(x.dtype)
    if x.is_contiguous():
        return values.contiguous()
    return values.movedim(1, -1).contiguous().movedim(-1, 1)


def is_planar(x: Tensor) -> bool:
    """Return whether the values of a sample and channel are adjacent."""
    return x.is_contiguous() and x[0, 0].numel() > 1


def mask_size(x: Tensor) -> int:
    """Return the bytes of the mask of ``x``: rows fill up to 16 bits."""
    row = x[0, 0].numel() if is_planar(x) else x.shape[1]
    return x.numel() // row * (-(-row // 16) * 2)


def to_bits(keep: Tensor, x: Tensor) -> Tensor:
    """Pack a boolean tensor of the shape of ``x``: rows of the layout, bit i % 8 of byte i / 8."""
    if is_planar(x):
        rows = keep.reshape(-1, x[0, 0].numel())
    else:
        rows = keep.movedim(1, -1).reshape(-1, x.shape[1])
    rows = F.pad(rows, (0, -rows.shape[1] % 16)).unflatten(1, (-1, 8))
    powers = 2 ** torch.arange(8, device=x.device)
    return (rows * powers).sum(-1).to(torch.uint8).flatten()


def from_bits(mask: Tensor, x: Tensor) -> Tensor:
    """Unpack what :func:`to_bits` packed, to the shape of ``x``."""
    planar = is_planar(x)
    length = x[0, 0].numel() if planar else x.shape[1]
    powers = 2 ** torch.arange(8, device=x.device)
    rows = ((mask.unsqueeze(1) & powers) != 0).view(-1, -(-length // 16) * 16)[:, :length]
    if planar:
        return rows.reshape(x.shape)
    return rows.reshape(x.movedim(1, -1).shape).movedim(-1, 1)
