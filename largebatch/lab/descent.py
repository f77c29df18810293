"""Digits, a small network for them, and plain training: what experiments on weights begin with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from largebatch.data import DataConfig, build_source
from largebatch.data.memory import ArraySource
from largebatch.data.source import Split
from largebatch.lab.whole_batch import LossOf, Samples


def digits(split: Split, dtype: torch.dtype = torch.float32, limit: int | None = None) -> Samples:
    """Return images (n, 1, 8, 8) as a run sees them, and their classes."""
    source = build_source(DataConfig(name="digits", limit=limit), split)
    assert isinstance(source, ArraySource)
    mean, std = (torch.tensor(v, dtype=dtype).view(-1, 1, 1) for v in (source.mean, source.std))
    return (source.images.to(dtype) * source.scale - mean) / std, source.labels


def network(
    widths: Sequence[int],
    seed: int,
    norm: bool = False,
    activation: type[nn.Module] = nn.ReLU,
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    """Return linear layers with activations between, and batch norm before these.

    Inputs are flattened. Where second derivatives are measured, tanh is the activation: of ReLU the
    gradient jumps, and a difference of gradients finds the jump.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for number, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
            layers.append(nn.Linear(before, after))
            if number < len(widths) - 2:
                layers += [nn.BatchNorm1d(after)] * norm + [activation()]
    return nn.Sequential(*layers).to(dtype)


def descend(
    model: nn.Module,
    samples: Samples,
    optimizer: torch.optim.Optimizer,
    batch: int,
    steps: int,
    seed: int,
    loss: LossOf = cross_entropy,
) -> Iterator[float]:
    """Train, and yield each step's mean loss after the step; every epoch has a new order.

    A batch of the whole set is gradient descent. It ends where the loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs, targets = samples
    count, order = len(targets), list[Tensor]()
    for _ in range(steps):
        if not order:
            whole = torch.randperm(count, generator=generator)
            order = list(whole[: count - count % min(batch, count)].split(batch))
        rows = order.pop()
        optimizer.zero_grad()
        value = loss(model(inputs[rows]), targets[rows])
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield float(value.detach())
        if not value.isfinite():
            return


@torch.no_grad()
def accuracy(model: nn.Module, samples: Samples) -> float:
    """Return the share of samples that the model, as it stands, gets right."""
    return float((model(samples[0]).argmax(1) == samples[1]).float().mean())
