"""Repeat the passes of the last step, for instruments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from largebatch.engine import Engine
from largebatch.probes import Forward, Replay, Side
from largebatch.train.feed import Pass, Share
from largebatch.train.step_times import StepTimes


class Passes(Protocol):
    """The methods of the stepper that a replay needs."""

    engine: Engine
    device: torch.device
    train: Forward
    times: StepTimes

    def forward(self, share: Share, one: Pass, train: Forward | None) -> Any:
        """Run a forward pass as in its step."""

    def memory_of(self, rows: dict[int, Tensor]) -> AbstractContextManager[None]:
        """Start a ``with`` block from stream memory ``rows``; restore the memory afterwards."""

    def frozen(self) -> AbstractContextManager[None]:
        """Leave running statistics and stream memory unchanged inside a ``with`` block."""


class StepReplay(Replay):
    """Repeats the passes of a step that a stepper has kept.

    Args:
        weight: weight of the whole step, by which the loss is divided.
        memory: stream memory before the step.
    """

    def __init__(
        self,
        stepper: Passes,
        share: Share,
        passes: list[Pass],
        weight: float,
        memory: dict[int, Tensor],
    ) -> None:
        self._stepper, self._share, self._passes = stepper, share, passes
        self._weight, self._memory = weight, memory
        self.train = stepper.train

    def visit(self, forward: Forward) -> Tensor:
        """Return this rank's sum of losses; meanwhile a sharding engine gathers the whole model."""
        stepper = self._stepper
        total = torch.zeros((), dtype=torch.float64, device=stepper.device)
        with torch.no_grad(), stepper.engine.evaluating(), self._aside():
            for one in self._passes:
                if not one.part.idle:
                    loss, _ = stepper.forward(self._share, one, forward)
                    total += loss.double()
        return total

    def loss(self) -> Tensor:
        """Return the mean loss."""
        total = self.visit(self.train)
        work = self._stepper.engine.sum(total)
        if work is not None:
            work.wait()
        return total / self._weight

    def gradient(self, forward: Forward | None = None, sides: Sequence[Side] = ()) -> list[Tensor]:
        """Return the gradient of the mean loss, by the engine's passes as in a step."""
        stepper, engine = self._stepper, self._stepper.engine
        sides = sides or ((lambda: None, 1.0),)
        left = len(sides) * len(self._passes)
        with torch.enable_grad(), self._aside():
            engine.begin()
            for move, factor in sides:
                move()
                for one in self._passes:
                    loss, _ = stepper.forward(self._share, one, None if one.part.idle else forward)
                    left -= 1
                    if left == 0:
                        engine.last()
                    engine.backward(loss, 0.0 if one.part.idle else factor / self._weight)
            engine.finish()
        scale = engine.scale_now()
        found = [p.grad for p in engine.model.parameters() if p.requires_grad]
        whole = [grad for grad in found if grad is not None]
        assert len(whole) == len(found), "an engine gives every parameter a gradient"
        return whole if scale is None else [grad / scale.to(grad.device) for grad in whole]

    @contextmanager
    def _aside(self) -> Iterator[None]:
        stepper = self._stepper
        with stepper.times.aside(), stepper.memory_of(self._memory), stepper.frozen():
            yield
