"""Fold the ReLUs and additions of a ResNet into its norms: fewer passes over memory."""

from __future__ import annotations

import sys

from torch import Tensor, nn

from largebatch.nn.over_ghosts import OverGhosts


class FusedResidualBlock(nn.Module):
    """A residual block whose norms apply the ReLUs, and whose last norm adds the shortcut.

    It takes the children of torchvision's ``BasicBlock`` or ``Bottleneck`` over under their names,
    so ``state_dict`` is the same.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        for name, child in block.named_children():
            if name != "relu":
                self.add_module(name, child)
        if not hasattr(self, "downsample"):
            self.downsample = None
        self.layers = 3 if hasattr(self, "conv3") else 2
        for number in range(1, self.layers + 1):
            self.get_submodule(f"bn{number}").activation = "relu"  # type: ignore[assignment]
        self.train(block.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output for ``x`` (N, C, H, W)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = x
        for number in range(1, self.layers):
            y = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(y))
        last = self.layers
        out: Tensor = getattr(self, f"bn{last}")(getattr(self, f"conv{last}")(y), shortcut)
        return out


def fuse(model: nn.Module) -> nn.Module:
    """Fold norm + ReLU and norm + addition + ReLU in torchvision's ResNets, in place.

    Only norms of this package can (``convert_batch_norm`` first); blocks with torch's batch norms,
    with another activation and models of other families stay as they are. Parameters, buffers and
    ``state_dict`` do not change; results are equal up to rounding.

    Returns:
        ``model``.
    """
    resnet = sys.modules.get("torchvision.models.resnet")
    if resnet is None:  # never imported: the model cannot come from it
        return model
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) in (resnet.BasicBlock, resnet.Bottleneck) and _fits(child):
                setattr(module, name, FusedResidualBlock(child))
        if type(module) is resnet.ResNet and _fits(module):
            module.get_submodule("bn1").activation = "relu"  # type: ignore[assignment]
            module.relu = nn.Identity()
    return model


def _fits(module: nn.Module) -> bool:
    norms = [child for name, child in module.named_children() if name.startswith("bn")]
    plain = all(isinstance(norm, OverGhosts) and norm.activation is None for norm in norms)
    return plain and type(getattr(module, "relu", None)) is nn.ReLU
