"""Modules that a norm calls on its result, such as the activation inside timm's norms."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

FOLLOWERS: dict[str, tuple[str, ...]] = {
    f"timm.{layers}.norm_act.{name}": ("drop", "act")
    for layers in ("layers", "models.layers")
    for name in ("BatchNormAct2d", "SyncBatchNormAct")
}
"""Subclasses of torch's batch norm that do nothing besides but to call these of their children, in
this order, on the result: ``convert_batch_norm`` takes them. Add your own by full name."""


def followers_of(norm: nn.Module) -> tuple[str, ...]:
    """Return the names of the children that ``norm`` calls on its result, () for none."""
    own = getattr(norm, "followers", None)
    names = own or FOLLOWERS.get(f"{type(norm).__module__}.{type(norm).__qualname__}", ())
    return tuple(name for name in names if name in norm._modules)


def follow(norm: nn.Module, y: Tensor) -> Tensor:
    """Apply the followers of ``norm`` to its result ``y``."""
    names: Any = norm.followers
    for name in names:
        y = norm.get_submodule(name)(y)
    return y
