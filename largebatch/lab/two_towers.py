"""A network whose layers are divided over two ranks, and the equivalent grouped network.

Krizhevsky et al. 2012, section 3.5: the second, fourth and fifth convolution of AlexNet see their
own tower alone, the others both.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# Of each convolution: kernels, side, stride, padding, groups, and whether a pooling follows.
SMALL = ((16, 3, 1, 1, 1, True), (32, 3, 1, 1, 2, False), (48, 3, 1, 1, 1, False),
         (48, 3, 1, 1, 2, False), (32, 3, 1, 1, 2, True))  # fmt: skip
ALEXNET = ((96, 11, 4, 0, 1, True), (256, 5, 1, 2, 2, True), (384, 3, 1, 1, 1, False),
           (384, 3, 1, 1, 2, False), (256, 3, 1, 1, 2, True))  # fmt: skip
TOWERS = 2


def monolith(
    convolutions: tuple[tuple[Any, ...], ...], dense: tuple[int, ...], image: tuple[int, int, int]
) -> nn.Sequential:
    """Build the network that the towers are together; a layer without groups sees both."""
    layers: list[nn.Module] = []
    channels, side, _ = image
    for out, kernel, stride, padding, groups, pooled in convolutions:
        layers += [nn.Conv2d(channels, out, kernel, stride, padding, groups=groups), nn.ReLU()]
        channels, side = out, (side + 2 * padding - kernel) // stride + 1
        if pooled:
            layers.append(nn.MaxPool2d(3, 2))
            side = (side - 3) // 2 + 1
    layers.append(nn.Flatten())
    features = channels * side * side
    for out in dense:
        layers += [nn.Linear(features, out), nn.ReLU()]
        features = out
    return nn.Sequential(*layers[:-1])


def crossing(whole: nn.Sequential) -> list[int]:
    """Return the numbers of the layers that see both towers: weights without groups."""
    weighty = [n for n, layer in enumerate(whole) if list(layer.parameters())]
    return [n for n in weighty[1:] if getattr(whole[n], "groups", 1) == 1]


class Tower(nn.Module):
    """One rank's half of every layer of the monolith; gathers where a layer sees both halves."""

    def __init__(self, whole: nn.Sequential, rank: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(halved(layer, rank) for layer in whole)
        self.crossing = crossing(whole)

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            x = layer(_Gather.apply(x) if number in self.crossing else x)
        return _Gather.apply(x)


class _Gather(torch.autograd.Function):
    """Puts the halves of all ranks together; what flows back is summed over the ranks."""

    @staticmethod
    def forward(_: Any, mine: Tensor) -> Tensor:
        halves = [torch.empty_like(mine) for _ in range(TOWERS)]
        dist.all_gather(halves, mine.contiguous())
        return torch.cat(halves, 1)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        parts = gradient.contiguous()
        dist.all_reduce(parts)
        return parts.chunk(TOWERS, 1)[dist.get_rank()]


def halved(layer: nn.Module, rank: int) -> nn.Module:
    """Return a copy of ``layer`` with half of its outputs, which a group's layer makes of half of
    the inputs."""
    new = copy.deepcopy(layer)
    for name, value in layer.named_parameters():
        setattr(new, name, nn.Parameter(half(value.detach(), rank).clone()))
    if isinstance(new, nn.Conv2d):
        new.groups = 1
    return new


def half(value: Tensor, rank: int) -> Tensor:
    """Return the rows of a weight, or of its gradient, that are a tower's."""
    return value.chunk(TOWERS)[rank]


def exchanged(whole: nn.Sequential, image: tuple[int, int, int]) -> tuple[int, int]:
    """Return (parameters, activations of one sample that the towers gather)."""
    gathered, x = 0, torch.empty(1, *image, device="meta")
    for number, layer in enumerate(whole):
        gathered += x.numel() * (number in crossing(whole))
        x = layer(x)
    return sum(p.numel() for p in whole.parameters()), gathered + x.numel()
