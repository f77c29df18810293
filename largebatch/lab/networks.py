"""Networks with random weights from a seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Literal, TypeAlias

import torch
from torch import nn

from largebatch.models.init import initialize

Rule: TypeAlias = Literal["default", "kaiming", "xavier"]
"""Of ``model.init``: how weights are drawn."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's generator for a ``with`` block; restore the generator afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def perceptron(
    widths: Sequence[int],
    seed: int,
    norm: bool = False,
    activation: type[nn.Module] = nn.ReLU,
    rule: Rule = "default",
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    """Return linear layers with activations between, and batch norm before these or none.

    Inputs are flattened. Use tanh where second derivatives are measured: ReLU's gradient jumps, and
    a difference of gradients would measure the jumps.

    Args:
        widths: of the inputs, of every hidden layer and of the outputs.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    with seeded(seed):
        for number, (before, after) in enumerate(pairwise(widths)):
            layers.append(nn.Linear(before, after))
            if number < len(widths) - 2:
                layers += [nn.BatchNorm1d(after)] * norm + [activation()]
        model = nn.Sequential(*layers)
        initialize(model, rule)
    return model.to(dtype)
