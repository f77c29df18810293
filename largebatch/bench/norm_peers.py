"""Baselines of `largebatch bench norm`: each form as users write it today."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

Forward = Callable[[Tensor, Tensor], Tensor]
"""``(x, residual) -> y``; most have no use for the residual."""


class ChunkAndCat(nn.Module):
    """Ghost batch norm as a loop: torch's batch norm for each ghost, then a concatenation."""

    def __init__(self, channels: int, ghost_size: int) -> None:
        super().__init__()
        self.norm, self.ghost_size = nn.BatchNorm2d(channels), ghost_size

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.norm(ghost) for ghost in x.split(self.ghost_size)])


class ReshapedGhosts(nn.Module):
    """Ghost batch norm in one torch call: each ghost's channels become separate channels."""

    def __init__(self, channels: int, ghost_size: int) -> None:
        super().__init__()
        self.ghost_size = ghost_size
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        ghosts = n // self.ghost_size
        folded = x.view(ghosts, self.ghost_size, c, h, w).transpose(0, 1)
        folded = folded.reshape(self.ghost_size, ghosts * c, h, w)
        y = nn.functional.batch_norm(
            folded, None, None, self.weight.repeat(ghosts), self.bias.repeat(ghosts), True
        )
        return y.view(self.ghost_size, ghosts, c, h, w).transpose(0, 1).reshape(n, c, h, w)


class EagerL1(nn.Module):
    """L1 batch norm in plain PyTorch, without ghosts: the published form."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        centered = x - x.mean((0, 2, 3), keepdim=True)
        scale = math.sqrt(math.pi / 2) * centered.abs().mean((0, 2, 3), keepdim=True)
        return centered / (scale + 1e-5) * self.weight + self.bias


def compiled_add_relu(norm: nn.Module, x: Tensor, residual: Tensor) -> Forward:
    """Return torch.compile's form of batch norm, addition and ReLU, compiled for these inputs."""

    def plain(x: Tensor, residual: Tensor) -> Tensor:
        return torch.relu(norm(x) + residual)

    compiled: Forward = torch.compile(plain, fullgraph=True)
    compiled(x, residual).sum().backward()
    return compiled
