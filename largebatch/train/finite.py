"""Check tensors, and a model before its first step, for infinities and NaN."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from largebatch._errors import UserError


def infinite_constants(model: nn.Module) -> frozenset[str]:
    """Return the names of a new model's constants that are not finite, such as masks.

    Raises:
        UserError: a trained parameter or a running statistic is not finite.
    """
    lost = [(name, tensor) for name, tensor in tensors_of(model) if is_lost(tensor.detach())]
    statistics = {
        f"{path}.{name}".lstrip(".")
        for path, module in model.named_modules()
        if isinstance(module, _NormBase)
        for name, _ in module.named_buffers(recurse=False)
    }
    for name, tensor in lost:
        if tensor.requires_grad or name in statistics:
            raise UserError(
                f"model: {name} is not finite before the first step; mend the model or the file"
                " of model.init_from"
            )
    return frozenset(name for name, _ in lost)


def tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers by name."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def is_lost(tensor: Tensor) -> bool:
    """Return whether a value in ``tensor`` is inf or nan; waits for the device."""
    return tensor.is_floating_point() and not bool(tensor.isfinite().all())
