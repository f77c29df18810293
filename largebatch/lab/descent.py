"""Plain training loops for experiments: batches, steps of any optimizer, and accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from largebatch.lab.digits import Samples

Model = Callable[[Tensor], Any]
"""Outputs of inputs; a module, most often."""

LossOf = Callable[[Any, Tensor], Tensor]
"""The mean loss of outputs and targets."""


def batches(samples: Samples, size: int, steps: int, seed: int) -> Iterator[Samples]:
    """Yield ``steps`` batches; every epoch has a new order and drops an incomplete last batch."""
    generator = torch.Generator().manual_seed(seed)
    inputs, targets = samples
    each = max(1, len(targets) // size)
    for number in range(steps):
        if number % each == 0:
            order = torch.randperm(len(targets), generator=generator).split(size)
        rows = order[number % each]
        yield inputs[rows], targets[rows]


def descend(
    model: Model,
    samples: Samples,
    optimizer: torch.optim.Optimizer,
    batch: int,
    steps: int,
    seed: int,
    loss: LossOf = cross_entropy,
    schedule: Callable[[float], float] = lambda done: 1.0,
) -> Iterator[float]:
    """Train, and yield each step's loss after the step; end if the loss is not finite.

    With a batch of the whole set this is gradient descent.

    Args:
        schedule: factor on the optimizer's rates, as a function of the share of steps done.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    for number, (inputs, targets) in enumerate(batches(samples, batch, steps, seed)):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(number / steps)
        optimizer.zero_grad()
        value = loss(model(inputs), targets)
        value.backward()
        optimizer.step()
        yield float(value.detach())
        if not value.isfinite():
            return


def fit(
    model: Model,
    samples: Samples,
    optimizer: torch.optim.Optimizer,
    batch: int,
    steps: int,
    seed: int,
    loss: LossOf = cross_entropy,
    schedule: Callable[[float], float] = lambda done: 1.0,
) -> list[float]:
    """Take all steps of :func:`descend`; return their losses."""
    return list(descend(model, samples, optimizer, batch, steps, seed, loss, schedule))


@torch.no_grad()
def accuracy(model: Model, samples: Samples) -> float:
    """Return the share of samples whose largest output is the right one."""
    inputs, targets = samples
    return float((model(inputs).argmax(1) == targets).double().mean())
