"""Warn of flat parameters, whose norm is not that of any layer.

Some engines concatenate many tensors into one vector. LARS and LAMB need the norm of each tensor,
which such a vector alone does not give.
"""

from __future__ import annotations

import warnings
from collections.abc import Container
from typing import Any

from torch import Tensor


def warn_of_flat(
    name: str,
    groups: list[tuple[dict[str, Any], list[Tensor]]],
    given: Container[int],
    fragments: Container[Tensor],
) -> None:
    """Warn if a layer-wise optimizer steps a flat vector of several tensors or of parts of them.

    Args:
        name: name of the optimizer.
        groups: parameter groups, each with the parameters that are stepped.
        given: ids of the parameters that the optimizer was made with. DeepSpeed's ZeRO puts one
            vector in the place of a group's.
        fragments: flat parameters whose layout is known, which need no warning.
    """
    for _, params in groups:
        first = params[0]
        if first in fragments or first.ndim != 1:
            continue
        if getattr(first, "_fsdp_flattened", False):  # torch's mark, on original parameters too
            _warn(name, "FullyShardedDataParallel", "use fully_shard (FSDP2), whose parts it knows")
        elif len(params) == 1 and id(first) not in given:
            _warn(name, "DeepSpeed's ZeRO", "call largebatch.optim.shard_for_deepspeed(engine), or "
                  "shard(param, ...) for another partitioner")  # fmt: skip


def _warn(name: str, who: str, remedy: str) -> None:
    warnings.warn(
        f"{name} steps a flat vector in the place of a group's parameters, as {who} makes them: "
        f"its rates come from the norm of the vector and not from those of tensors; {remedy}",
        stacklevel=2,
    )
