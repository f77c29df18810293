"""Baselines of `largebatch bench contrastive`: the whole logit matrix, and other packages.

Each returns the mean over pairs, as its users call it.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def whole_matrix(kind: str, temperature: float) -> Loss:
    """Return a loss by all logits at once, in plain torch operators, on one rank."""

    def ntxent(a: Tensor, b: Tensor) -> Tensor:
        views = F.normalize(torch.cat((a, b)), dim=1)
        logits = ((views / temperature) @ views.t()).fill_diagonal_(-math.inf)
        pairs = torch.arange(len(a), device=a.device)
        return F.cross_entropy(logits, torch.cat((pairs + len(a), pairs)))

    def clip(a: Tensor, b: Tensor) -> Tensor:
        logits = (F.normalize(a, dim=1) / temperature) @ F.normalize(b, dim=1).t()
        pairs = torch.arange(len(a), device=a.device)
        return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.t(), pairs)) / 2

    def siglip(a: Tensor, b: Tensor) -> Tensor:
        logits = (F.normalize(a, dim=1) / temperature) @ F.normalize(b, dim=1).t()
        signs = 2 * torch.eye(len(a), device=a.device, dtype=a.dtype) - 1
        return -F.logsigmoid(signs * logits).sum() / len(a)

    return {"ntxent": ntxent, "clip": clip, "siglip": siglip}[kind]


class _Gathered(torch.autograd.Function):
    """All ranks' rows; an all-reduce sums all gradients, of which a rank keeps those of its own.

    The form of solo-learn and lightly.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        summed = gradient.clone()
        dist.all_reduce(summed)
        return summed.chunk(dist.get_world_size())[dist.get_rank()]


def gathered_matrix(temperature: float) -> Loss:
    """Return NT-Xent of this rank's anchors against the gathered views of all ranks."""

    def loss(a: Tensor, b: Tensor) -> Tensor:
        count, size, rank = len(a), dist.get_world_size(), dist.get_rank()
        own = [F.normalize(z, dim=1) for z in (a, b)]
        every = torch.cat([_Gathered.apply(z) for z in own])
        logits = (torch.cat(own) / temperature) @ every.t()
        first = torch.arange(count) + rank * count
        second = first + size * count
        anchors = torch.arange(2 * count)
        logits = logits.index_put(
            (anchors, torch.cat((first, second))), logits.new_tensor(-math.inf)
        )
        return F.cross_entropy(logits, torch.cat((second, first)))

    return loss


def lightly(temperature: float, over_ranks: bool = False) -> Loss:
    """Return lightly's NTXentLoss.

    Raises:
        ImportError: the package is not installed.
    """
    module = importlib.import_module("lightly.loss")
    loss: Loss = module.NTXentLoss(temperature, gather_distributed=over_ranks)
    return loss


def metric_learning(temperature: float) -> Loss:
    """Return pytorch-metric-learning's NTXentLoss over two views.

    Raises:
        ImportError: the package is not installed.
    """
    losses = importlib.import_module("pytorch_metric_learning.losses")
    loss: Loss = losses.SelfSupervisedLoss(losses.NTXentLoss(temperature))
    return loss


@dataclass(frozen=True)
class Peer:
    """A package's NT-Xent.

    Attributes:
        make: takes the temperature; an ImportError is the reason why the peer does not run.
        memory: bytes of its largest matrices, from the number of pairs.
    """

    make: Callable[[float], Loss]
    memory: Callable[[int], int]


PEERS = {
    "lightly's NTXentLoss": Peer(lightly, lambda pairs: 3 * 4 * (2 * pairs) ** 2),
    # Which pair has which negative: one byte, and as a number four, a positive and negative pair.
    "pytorch-metric-learning's NTXentLoss": Peer(
        metric_learning, lambda pairs: 5 * 2 * pairs * 2 * pairs * (2 * pairs - 2)
    ),
}
