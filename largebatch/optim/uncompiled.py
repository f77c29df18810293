"""Optimizers of torch's that do not load torch's compiler.

torch keeps some methods of optimizers out of compiled programs, and imports the compiler for that
when they are first called: seconds at the start of every process. Where nobody has loaded the
compiler, nothing is compiled, and the method that torch wraps does the same.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch

METHODS = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


def without_compiler(name: str) -> Callable[..., Any]:
    """Return one of the `METHODS` of ``torch.optim.Optimizer`` that loads no compiler."""
    method = getattr(torch.optim.Optimizer, name)
    plain = inspect.unwrap(method)

    @functools.wraps(plain)
    def called(self: torch.optim.Optimizer, *arguments: Any, **named: Any) -> Any:
        return (method if _is_loaded() else plain)(self, *arguments, **named)

    return called


def uncompiled(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """Return a subclass of ``kind`` that loads no compiler by what ``kind`` has from torch."""
    members = {
        name: without_compiler(name)
        for name in METHODS
        if getattr(kind, name) is getattr(torch.optim.Optimizer, name)
    }
    step = _unhooked(kind)
    if getattr(step, "__code__", None) is _DIFFERENTIABLE:
        members["step"] = _step(step)
    return type(kind.__name__, (kind,), members)


def _unhooked(kind: type[torch.optim.Optimizer]) -> Callable[..., Any]:
    """Return a class's step without the hooks that it got as an optimizer of it was made.

    A subclass gets hooks of its own.
    """
    return inspect.unwrap(kind.step, stop=lambda step: not getattr(step, "hooked", False))


# The wrapper that torch puts around the steps of its optimizers: the same code for all.
_DIFFERENTIABLE = _unhooked(torch.optim.Adam).__code__


def _step(method: Callable[..., Any]) -> Callable[..., Any]:
    plain = inspect.unwrap(method)

    @functools.wraps(plain)
    def step(self: torch.optim.Optimizer, *arguments: Any, **named: Any) -> Any:
        if _is_loaded():
            return method(self, *arguments, **named)
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return plain(self, *arguments, **named)

    return step


def _is_loaded() -> bool:
    return "torch._dynamo" in sys.modules
