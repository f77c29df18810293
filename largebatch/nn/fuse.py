"""Fold ReLUs and additions into the norms before them, for fewer passes over memory, and unfold."""

# No annotations as strings here: torch.jit reads those of what it compiles.

import sys

from torch import Tensor, nn

from largebatch.nn.carry_over import carry_over, is_hooked
from largebatch.nn.over_ghosts import OverGhosts


class FusedResidualBlock(nn.Module):
    """A residual block whose norms apply the ReLUs, and whose last norm adds the shortcut.

    The children of torchvision's ``BasicBlock`` or ``Bottleneck`` keep their names, so
    ``state_dict`` is the same.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        for name, child in block.named_children():
            if name != "relu":
                self.add_module(name, child)
        if not hasattr(self, "downsample"):
            self.downsample = None
        for norm in self.norms():
            norm.activation = "relu"
        carry_over(block, self, frozenset(block._modules))
        self.block = (block,)  # in a tuple it is no child: its parameters are ours
        self.train(block.training)

    def norms(self) -> list[OverGhosts]:
        """Return the norms of the main path."""
        return [norm for norm in self.children() if isinstance(norm, OverGhosts)]

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output for ``x`` (N, C, H, W)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y: Tensor = self.bn1(self.conv1(x))  # type: ignore[operator]
        if not hasattr(self, "conv3"):
            return self.bn2(self.conv2(y), shortcut)  # type: ignore[operator]
        y = self.bn2(self.conv2(y))  # type: ignore[operator]
        return self.bn3(self.conv3(y), shortcut)  # type: ignore[operator]

    def unfused(self) -> nn.Module:
        """Return the original block, with the present children."""
        for norm in self.norms():
            norm.activation = None
        (block,) = self.block
        for name, child in self.named_children():
            setattr(block, name, child)
        carry_over(self, block, frozenset((*self._modules, "block")))
        return block.train(self.training)


class FoldedReLU(nn.Identity):
    """Stands in the place of a ReLU that the norm before it now applies."""

    def __init__(self, relu: nn.Module) -> None:
        super().__init__()
        self.relu = (relu,)  # no child: a walk over the model must not meet it


def fuse(model: nn.Module) -> nn.Module:
    """Fold norm + ReLU and norm + addition + ReLU in torchvision's ResNets, in place.

    Norms that call a ReLU of their own, such as timm's, absorb that ReLU too, in any model. Only
    norms of this package can be fused: call ``convert_batch_norm`` first. Left as they are: blocks
    with torch's batch norms, with another activation or with a hook on the activation, and the
    blocks of other model families. Parameters, buffers and ``state_dict`` do not change. Results
    are equal up to rounding.

    Returns:
        ``model``.
    """
    # Never imported: the model cannot come from it.
    resnet = sys.modules.get("torchvision.models.resnet")
    for module in list(model.modules()):
        if isinstance(module, OverGhosts) and module.activation is None:
            _take_in(module)
        if resnet is None:
            continue
        for name, child in list(module.named_children()):
            if type(child) in (resnet.BasicBlock, resnet.Bottleneck) and _fits(child):
                setattr(module, name, FusedResidualBlock(child))
        if type(module) is resnet.ResNet and _fits(module):
            module.get_submodule("bn1").activation = "relu"  # type: ignore[assignment]
            module.relu = FoldedReLU(module.get_submodule("relu"))
    return model


def unfuse(model: nn.Module) -> nn.Module:
    """Undo :func:`fuse`, in place, so that ``convert_batch_norm(model, "batch")`` can follow.

    Returns:
        ``model``; or the original block, if ``model`` is itself a fused block.
    """
    if isinstance(model, FusedResidualBlock):
        model = model.unfused()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, FusedResidualBlock):
                setattr(module, name, child.unfused())
            elif isinstance(child, FoldedReLU):
                norm = module if isinstance(module, OverGhosts) else module.bn1
                assert isinstance(norm, OverGhosts)
                norm.activation = None
                setattr(module, name, child.relu[0])
    return model


def _take_in(norm: OverGhosts) -> None:
    """Apply the ReLU that follows ``norm`` in its own pass."""
    acting = [n for n in norm.followers if type(norm.get_submodule(n)) is not nn.Identity]
    if acting and _folds(norm.get_submodule(acting[0])):
        norm.activation = "relu"
        setattr(norm, acting[0], FoldedReLU(norm.get_submodule(acting[0])))


def _fits(module: nn.Module) -> bool:
    norms = [child for name, child in module.named_children() if name.startswith("bn")]
    plain = all(isinstance(norm, OverGhosts) and norm.activation is None for norm in norms)
    return plain and "forward" not in vars(module) and _folds(getattr(module, "relu", None))


def _folds(relu: nn.Module | None) -> bool:
    return type(relu) is nn.ReLU and not is_hooked(relu)
