"""Copy a user's hooks, attributes, buffers and children to the module that replaces theirs."""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn

_HOOKS = tuple(name for name in vars(nn.Module()) if "hook" in name)


def is_hooked(module: nn.Module) -> bool:
    """Return whether ``module`` has a hook on running, saving or loading."""
    return any(getattr(module, name) for name in _HOOKS)


def carry_over(old: nn.Module, new: nn.Module, known: frozenset[str]) -> None:
    """Give ``new`` all that the user has added to ``old``.

    The dictionaries of hooks are shared, so handles that the user holds can still remove hooks.

    Args:
        old: the module that leaves the model.
        new: the module that takes its place.
        known: names that belong to these classes, of which ``new`` has its own.

    Raises:
        ValueError: ``old.forward`` was replaced by a function, which would be lost.
    """
    if "forward" in vars(old):
        raise ValueError("its forward was replaced by another function, which would be lost")
    for name in _HOOKS:
        setattr(new, name, getattr(old, name))
    wrapped: Any = new._load_state_dict_pre_hooks.values()
    for hook in wrapped:
        if getattr(hook, "with_module", False):
            hook.module = weakref.ref(new)
    for name, child in old._modules.items():
        if name not in known:
            new.add_module(name, child)
    for name, buffer in old._buffers.items():
        if name not in known and name not in new._buffers:
            persistent = name not in old._non_persistent_buffers_set
            new.register_buffer(name, buffer, persistent=persistent)
    for name, value in vars(old).items():
        if name not in known and name not in vars(new):
            setattr(new, name, value)
