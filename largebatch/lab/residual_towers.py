"""Residual blocks at initialisation, and the propagation of noise through them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from largebatch.lab.networks import seeded
from largebatch.models.layers import kaiming_fan_out
from largebatch.models.nf_resnet import ALPHA, NormFreeBlock
from largebatch.models.wide_resnet import PreActivationBlock
from largebatch.nn import convert_batch_norm


def with_norm(channels: int, blocks: int) -> nn.Sequential:
    """Return residual blocks in which norm and ReLU come before each convolution."""
    tower = nn.Sequential(
        *(PreActivationBlock(channels, channels, 1, 0.0, 0.0) for _ in range(blocks))
    )
    kaiming_fan_out(tower)
    return tower


def without_norm(channels: int, blocks: int) -> nn.Module:
    """Return the same blocks with their norms taken out."""
    return convert_batch_norm(with_norm(channels, blocks), "none")


def standardized(channels: int, blocks: int) -> nn.Sequential:
    """Return blocks of scaled weight standardisation, each divided by the variance expected."""
    return nn.Sequential(
        *(
            NormFreeBlock(channels, channels, 1, math.sqrt(1 + ALPHA**2 * block), gain=1.0)
            for block in range(blocks)
        )
    )


TOWERS: Mapping[str, Callable[[int, int], nn.Module]] = {
    "batch norm": with_norm,
    "none": without_norm,
    "SWS": standardized,
}


@dataclass(frozen=True)
class Signal:
    """Statistics of every block's output; the input's come first.

    Attributes:
        mean_square: of a channel's mean over samples and places, averaged over channels.
        variance: of a channel over samples and places, averaged over channels.
        branch: mean square of what a block's branch adds, over that of its shortcut; one fewer.
    """

    mean_square: list[float]
    variance: list[float]
    branch: list[float]


@torch.no_grad()
def propagate(name: str, seed: int, channels: int, blocks: int, images: int = 8) -> Signal:
    """Send Gaussian noise through freshly drawn blocks, in training mode."""
    with seeded(seed):
        tower = TOWERS[name](channels, blocks)
        x = torch.randn(images, channels, 16, 16)
    signal = Signal([], [], [])
    _keep(signal, x)
    for block in tower.children():
        y = block(x)
        signal.branch.append(float((y - x).square().mean() / x.square().mean()))
        x = y
        _keep(signal, x)
    return signal


def _keep(signal: Signal, x: Tensor) -> None:
    signal.mean_square.append(float(x.mean((0, 2, 3)).square().mean()))
    signal.variance.append(float(x.var((0, 2, 3), correction=0).mean()))
