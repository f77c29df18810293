"""Make torch.fx record a module of this package as one call, like a module of torch's own."""

from __future__ import annotations

from typing import Any

import torch.fx
from torch import nn

Proxy: Any = torch.fx.Proxy  # Any, as none of our signatures admits one


def recorded(module: nn.Module, *args: Any) -> Any:
    """Record the call of ``module`` in the graph that is being traced (``args[0]`` is a proxy).

    Tracers trace into every module outside of ``torch.nn``. Our modules branch on shapes, which a
    trace does not know, and a traced graph must still switch between training and evaluation.

    Raises:
        TypeError: ``module`` is itself the traced model, not a part of a model.
    """
    tracer = args[0].tracer
    path = tracer.path_of_module(module)
    if not path:
        raise TypeError(
            f"torch.fx cannot trace a {type(module).__name__} alone: put it into a model, as in"
            " nn.Sequential(norm)"
        )
    while args[-1] is None:
        args = args[:-1]
    return tracer.create_proxy("call_module", path, args, {})
