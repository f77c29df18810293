"""Trained paths: minimise the expected loss along a path between two fixed networks.

Garipov et al. 2018 (arXiv:1802.10026), section 3, algorithm 1. For every step a place t is drawn
uniformly, and the bends between the ends get the gradient of the loss at this place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from largebatch.data.draws import key
from largebatch.nn import current_place, frozen_statistics, ghost_place
from largebatch.weight_space.path import Coefficients, WeightPath, bezier, combine, polychain
from largebatch.weight_space.weights import Weights, norm_statistics, weights_of

B = TypeVar("B")
CURVE = 0x43757276  # separates the stream of places from the run's others


def curve_place(seed: int, step: int) -> float:
    """Return the place in [0, 1) of a step, a function of seed and step only."""
    return float((key(seed, CURVE, step) >> 11) * 2.0**-53)


class Curve(nn.Module):
    """A network whose weights lie on a path, and move with the bends between its fixed ends.

    A curve is called like the network. Inside a step of a run (identified by
    ``largebatch.nn.ghost_place``), a forward pass in training draws the place from seed and step.
    The place is the same on all ranks and in all passes of the step. Otherwise the place is
    :attr:`at`.

    Batch norms normalise by the batch (or by ghosts) in evaluation too, because running statistics
    would mix many places.

    The bends begin on the line between the ends, at equal distances. All are full copies of the
    network, so that optimizers recognise the kinds of layers.

    Attributes:
        at: the place, in [0, 1].
        bends: the networks; the first and the last take no gradient.

    Args:
        model: a network of the architecture; the curve takes over its norms' settings.
        start, end: weights at the ends, as :func:`weights_of` returns them.
        coefficients: the kind of path, see :class:`WeightPath`.
        bends: number of networks that the path is made of, its ends included; three in the paper.
        seed: seed of the places.
    """

    def __init__(
        self,
        model: nn.Module,
        start: Weights,
        end: Weights,
        coefficients: Coefficients = bezier,
        bends: int = 3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        assert bends >= 3, "there is nothing to train between two ends"
        line = WeightPath([start, end], polychain)
        self.coefficients, self.seed, self.at = coefficients, seed, 0.5
        self.bends = nn.ModuleList([deepcopy(model) for _ in range(bends)])
        self.train(model.training)
        for number, bend in enumerate(self.bends):
            _put(bend, line(number / (bends - 1)))
            if number in (0, bends - 1):
                bend.requires_grad_(False)
        self._left_out = set(norm_statistics(model))

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """Return the network's output with the weights of the place."""
        place = current_place()
        t = self.at
        if self.training and place is not None and place.step is not None:
            t = curve_place(self.seed, place.step)
        coefficients = self.coefficients(len(self.bends), t)
        tensors = combine([self._tensors(bend) for bend in self.bends], coefficients)
        runner = self.bends[1]  # one that moves: its norms' statistics are of no end
        if self.training:
            return functional_call(runner, tensors, arguments, named)
        with _by_batch(runner, arguments):
            return functional_call(runner, tensors, arguments, named)

    def path(self) -> WeightPath:
        """Return a copy of the present path."""
        return WeightPath([weights_of(bend) for bend in self.bends], self.coefficients)

    def _tensors(self, bend: nn.Module) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {
            name: buffer
            for name, buffer in bend.named_buffers()
            if name not in self._left_out and buffer.is_floating_point()
        }
        return {**dict(bend.named_parameters()), **tensors}


@contextmanager
def _by_batch(model: nn.Module, arguments: tuple[Any, ...]) -> Iterator[None]:
    """Let batch norms normalise as in training, and leave no trace; not of a single sample.

    Norms over ranks stay as they are: in evaluation ranks do not call them as often.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and not getattr(module, "over_ranks", False)
    ]
    count = next((len(each) for each in arguments if isinstance(each, Tensor)), 0)
    if count < 2 or not norms:
        yield
        return
    with frozen_statistics(model), ghost_place(0, count):
        for norm in norms:
            norm.training = True
        try:
            yield
        finally:
            for norm in norms:
                norm.training = False


@torch.no_grad()
def _put(model: nn.Module, weights: Weights) -> None:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in weights.items():
        tensors[name].copy_(tensor)


def train_curve(
    curve: Curve,
    batches: Iterable[B],
    loss: Callable[[nn.Module, B], Tensor],
    optimizer: torch.optim.Optimizer,
    rate: Callable[[int], float] | None = None,
) -> WeightPath:
    """Train a curve outside of a run, one batch per step; return the path.

    Args:
        loss: returns the mean loss of a batch, 0-d, for the curve called as a network.
        optimizer: optimizer of the curve's parameters.
        rate: learning rate as a function of the step's number, from 0; None: the optimizer's own.
    """
    for number, batch in enumerate(batches):
        curve.at = curve_place(curve.seed, number)
        for group in optimizer.param_groups if rate is not None else ():
            assert rate is not None
            group["lr"] = rate(number)
        optimizer.zero_grad()
        loss(curve, batch).backward()
        optimizer.step()
    return curve.path()
