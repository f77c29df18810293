"""What torch.fx records of a module of ours: one call, as of a module of torch's own."""

from __future__ import annotations

from typing import Any

import torch.fx
from torch import nn

Proxy: Any = torch.fx.Proxy  # Any, as none of our signatures admits one


def recorded(module: nn.Module, *args: Any) -> Any:
    """Enter the call of ``module`` into the graph that the first of ``args`` is traced for.

    Tracers look into every module that does not lie in ``torch.nn``. Ours decide by shapes, which
    a trace does not know, and a graph must still switch between training and evaluation.

    Raises:
        TypeError: ``module`` is itself what is traced, and not a part of it.
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
