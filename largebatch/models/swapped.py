"""Use other weights in a model for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def swapped_in(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Give ``model`` other values for the named tensors, for a ``with`` block.

    Values are copied, since an engine may keep views of the model's memory.
    """
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    targets = [own[name].detach() for name in tensors]
    saved = [target.clone() for target in targets]
    try:
        for target, tensor in zip(targets, tensors.values(), strict=True):
            target.copy_(tensor)
        yield
    finally:
        for target, tensor in zip(targets, saved, strict=True):
            target.copy_(tensor)
