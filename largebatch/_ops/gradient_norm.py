"""``global_norm`` and ``clip_factor``: the norm of a list of tensors, and the clip factor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from largebatch._ops.derivatives import refuse_derivatives
from largebatch._ops.library import Operator, notice, register
from largebatch._ops.step import scalar


def reference_global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Specify ``largebatch::global_norm``: squares and sums in float64, one rounding at the end."""
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    squares = [tensor.detach().double().square().sum() for tensor in tensors]
    norm = torch.stack(squares).sum().sqrt()
    return norm if wide else norm.float()


def reference_clip_factor(
    tensors: Sequence[Tensor], max_norm: float, *, eps: float, scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Specify ``largebatch::clip_factor``; :func:`clip_factor` says what the arguments mean."""
    norm, scale = reference_global_norm(tensors), scalar(scale)
    wide = norm.double() if scale is None else norm.double() * scale.double()
    factor = torch.clamp(max_norm / (wide + eps), max=1.0)
    if scale is not None:
        factor = factor * scale.double()
    return wide.to(norm.dtype), factor.to(norm.dtype)


def _fake_global_norm(tensors: Sequence[Tensor]) -> Tensor:
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return tensors[0].new_empty((), dtype=torch.float64 if wide else torch.float32)


def _fake_clip_factor(
    tensors: Sequence[Tensor], max_norm: float, *, eps: float, scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    return _fake_global_norm(tensors), _fake_global_norm(tensors)


register(
    Operator("global_norm(Tensor[] tensors) -> Tensor", reference_global_norm, _fake_global_norm),
    Operator(
        "clip_factor(Tensor[] tensors, float max_norm, *, float eps, Tensor? scale) "
        "-> (Tensor, Tensor)",
        reference_clip_factor,
        _fake_clip_factor,
    ),
)


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of all elements of ``tensors`` (one device) together.

    The sum runs in float64 over fixed chunks in a fixed order, so that the number of threads does
    not change its bits. The result is 0-d: float64 if any input is float64, else float32. It is 0
    for an empty list.
    """
    if not tensors:
        return torch.zeros(())
    refuse_derivatives("global_norm", tensors)
    notice("global_norm", tensors)
    return torch.ops.largebatch.global_norm(tensors)


def clip_factor(
    tensors: Sequence[Tensor],
    max_norm: float,
    *,
    eps: float = 1e-6,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return norm and factor of clipping by the global norm, both 0-d.

    Args:
        scale: one float32 or float64 on the device, 1 / loss scale; the norm is of ``scale`` x
            tensors.
        eps: the factor is min(1, ``max_norm`` / (norm + ``eps``)), times ``scale``.
    """
    if not tensors:
        return torch.zeros(()), torch.ones(())
    refuse_derivatives("clip_factor", tensors)
    notice("clip_factor", tensors)
    norm, factor = torch.ops.largebatch.clip_factor(tensors, max_norm, eps=eps, scale=scale)
    return norm, factor
