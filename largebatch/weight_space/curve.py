"""A path that is trained: the expected loss along it is descended, its ends stay.

Garipov et al. 2018 (arXiv:1802.10026), section 3, algorithm 1: a place t is drawn uniformly for
every step, and the bends between the ends get the gradient of the loss there.
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
    """Return the place in [0, 1) at which a step is taken: a function of its arguments alone."""
    return float((key(seed, CURVE, step) >> 11) * 2.0**-53)


class Curve(nn.Module):
    """A network whose weights lie on a path, and move with the bends between its fixed ends.

    It is called as the network is. Inside a step of a run (``largebatch.nn.ghost_place`` says where
    it begins) a forward pass in training draws the place from seed and step, the same on all ranks
    and in all passes of it; else it is at :attr:`at`.

    In evaluation batch norms normalise by the batch as well (by ghosts, where they have those): the
    running statistics are those of many places, and of none.

    The bends begin on the line between the ends, at equal distances. All of them are real copies of
    the network, so that optimizers find the kinds of layers that they look for.

    Attributes:
        at: the place, in [0, 1].
        bends: the networks, of which the first and the last take no gradient.

    Args:
        model: of the architecture; its norms' settings are the curve's.
        start, end: its weights at the ends, as :func:`weights_of` returns them.
        coefficients: of the kind of path.
        bends: networks that the path is made of, its ends among them: three in the paper.
        seed: of the places.
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
        """Return what the network returns with the weights of the place."""
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
        """Return the path as it is now: a copy."""
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
    """Train a curve by itself, a batch a step, and return the path: for networks without a run.

    Args:
        loss: the mean loss of a batch, 0-d, of the network that the curve stands for.
        optimizer: over the curve's parameters.
        rate: of a step's number, from 0; None: the optimizer's own.
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
