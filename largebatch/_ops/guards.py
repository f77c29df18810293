"""Checks of arguments that kernels cannot make: different devices, and autograd's rules.

torch's own operators refuse tensors on several devices. For other operators the dispatcher takes
the fake kernel as soon as one tensor is on the meta device, and would silently compute nothing.
torch also refuses to change inference tensors, or tensors that need a derivative, but only in
wrappers that it generates for its own operators.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def on_one_device(
    schema: torch.FunctionSchema, fake: Callable[..., Any], host: Collection[str]
) -> Callable[..., Any]:
    """Return ``fake`` with a check that refuses tensors on more than one device.

    Arguments named in ``host`` are on the CPU, or on the meta device like all others. A tensor
    without elements stands for an absent one and may be on any real device.
    """
    names = [argument.name for argument in schema.arguments]

    def checked(*args: Any, **options: Any) -> Any:
        values = {**dict(zip(names, args, strict=False)), **options}
        tensors = list(_tensors(v for name, v in values.items() if name not in host))
        tables = list(_tensors(values.get(name) for name in host))
        devices = {tensor.device for tensor in tensors}
        if len(devices) > 1 and torch.device("meta") not in devices:
            devices = {tensor.device for tensor in tensors if tensor.numel() > 0}
        if tensors and devices != {torch.device("meta")}:
            devices |= {table.device for table in tables if table.device.type != "cpu"}
        if len(devices) > 1:
            found = " and ".join(sorted(map(str, devices)))
            raise RuntimeError(f"{schema.name}: tensors on {found}; all must be on one device")
        return fake(*args, **options)

    return checked


def written(schema: torch.FunctionSchema) -> list[str]:
    """Return the names of the arguments that an operator changes."""
    return [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]


def in_place(operator: torch._ops.OpOverload) -> Callable[..., Any]:
    """Return a kernel that runs before an operator's own and enforces torch's rules.

    It makes the two refusals described above, and lets autograd count each change.
    """
    schema = operator._schema
    names, targets = [argument.name for argument in schema.arguments], written(schema)

    def check(keyset: Any, *args: Any, **options: Any) -> Any:
        values = {**dict(zip(names, args, strict=False)), **options}
        if torch.is_grad_enabled() and any(t.requires_grad for t in _tensors(values.values())):
            raise RuntimeError(
                f"{schema.name}: a tensor requires grad, and a change in place has no derivative "
                "here; call it under torch.no_grad()"
            )
        changed = list(_tensors(values[name] for name in targets))
        outside = not torch.is_inference_mode_enabled()
        if outside and any(tensor.is_inference() for tensor in changed):
            raise RuntimeError(
                f"{schema.name}: an inference tensor cannot be changed outside of "
                "torch.inference_mode(); clone() it first"
            )
        torch.autograd.graph.increment_version(changed)
        with torch._C._AutoDispatchBelowADInplaceOrView():
            below = keyset & torch._C._after_ADInplaceOrView_keyset
            return operator.redispatch(below, *args, **options)

    return check


def call_checked(operator: torch._ops.OpOverloadPacket, *args: Any, **options: Any) -> None:
    """Call an operator without :func:`in_place`, whose Python code takes as long as a kernel.

    For the optimizers, which make these checks once and tell autograd of their steps.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        operator(*args, **options)
    else:
        with torch._C._AutoDispatchBelowADInplaceOrView():
            operator(*args, **options)
