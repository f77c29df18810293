"""torchvision's ResNets by name: He et al., "Deep residual learning for image recognition", 2015.

The stride of a bottleneck sits in its 3x3 convolution ("v1.5"). The names of the parameters are
torchvision's, so its checkpoints fit.
"""

from __future__ import annotations

from torch import nn

from largebatch.models.registry import ImageShape, models, need_size

_DEPTHS = {
    18: ("basic", [2, 2, 2, 2], "11.7 M parameters"),
    34: ("basic", [3, 4, 6, 3], "21.8 M parameters"),
    50: ("bottleneck", [3, 4, 6, 3], "25.6 M parameters, 4.1 G multiply-adds at 224x224"),
    101: ("bottleneck", [3, 4, 23, 3], "44.5 M parameters"),
    152: ("bottleneck", [3, 8, 36, 3], "60.2 M parameters"),
}


def _register(depth: int) -> None:
    kind, layers, size = _DEPTHS[depth]

    @models.register(
        f"resnet{depth}", f"torchvision's ResNet-{depth} for ImageNet, {size}", "He et al. 2015"
    )
    def resnet(
        num_classes: int = 1000,
        image_shape: ImageShape = (3, 224, 224),
        residual_gamma: float = 1.0,
        drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> nn.Module:
        need_size(f"resnet{depth}", image_shape, 32)
        # torchvision takes a second to import, so only a run that builds a ResNet pays for it.
        from largebatch.models.residual_blocks import build_resnet

        return build_resnet(
            kind, layers, num_classes, image_shape[0], residual_gamma, drop, drop_path
        )


for _depth in _DEPTHS:
    _register(_depth)
