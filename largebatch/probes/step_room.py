"""Room of a step: how much longer the step could be before the loss of its batch rises."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.probes.instrument import Instrument, Moment
from largebatch.probes.parameter_space import ParameterSpace
from largebatch.probes.registry import probes
from largebatch.probes.room import find_room
from largebatch.schedule import Clock, Duration, Every

EVERY = "128st"  # six forward passes are about two steps: 2% of the time
FORWARDS = 6  # of the step's batch, the one before the step among them
GUESS = 2.0  # of a step to the bottom of a parabola
REMEMBERED = 8


class StepRoom(Instrument):
    """Finds the largest multiple of a step's update that does not raise the loss of its batch.

    For gradient descent on a quadratic the room is 2 / (rate x curvature), and 1 where steps
    diverge. It is the "critical sharpness" (arXiv 2601.16979, 2026), which follows the largest
    eigenvalue at a fraction of the cost. Near 1 or 2 the curvature limits the rate. Much above 2
    gradient noise limits the rate, and the rate or the batch may grow.

    The figure ``step_room`` is the multiple. If no step within reach raises the loss, it is the
    largest multiple tried.

    Args:
        every: which steps are measured; None: each 128th, about 2% of the time.
    """

    name = "step_room"
    moment = "stepped"
    replays = True

    def __init__(self, model: nn.Module, clock: Clock, every: Every | None = None) -> None:
        self.every = every or Every(Duration.parse(EVERY), clock)
        self._space = ParameterSpace(model)
        self._before: Tensor | None = None
        self._rooms: list[float] = []

    def before(self, at: Moment) -> None:
        """Copy the weights before the step."""
        self._before = self._space.weights()

    def measure(self, at: Moment) -> Mapping[str, Tensor]:
        """Return the room of the step; nothing if the step moved no weight."""
        before, self._before = self._before, None
        replay, space = at.replay(), self._space
        assert before is not None and replay is not None
        after = space.weights()
        if space.norm(after - before) == 0:
            return {}

        def loss(multiple: float) -> float:
            space.set(torch.lerp(before, after, multiple))
            return float(replay.loss())

        try:
            start = loss(0.0)
            guess = self._rooms[-1] if self._rooms else GUESS
            room = find_room(lambda c: loss(c) - start, guess, FORWARDS - 1)
        finally:
            space.set(after)
        self._rooms = [*self._rooms[1 - REMEMBERED :], room.multiple]
        return {"step_room": torch.tensor(room.multiple, dtype=torch.float64)}

    def close(self) -> str | None:
        """Return one sentence on what limits the learning rate."""
        if not self._rooms:
            return None
        room = median(self._rooms)
        return f"step room {room:.3g}: a step {words(room)}"

    def state(self) -> dict[str, Any]:
        """Return the last rooms found."""
        return {"rooms": list(self._rooms)}

    def check(self, state: Any) -> None:
        """Require rooms, as :meth:`state` returns."""
        rooms = state.get("rooms") if isinstance(state, dict) else None
        if not isinstance(rooms, list) or not all(isinstance(r, float) for r in rooms):
            raise ValueError("no rooms of steps")

    def load(self, state: Any) -> None:
        """Restore rooms found before."""
        self._rooms = state["rooms"][-REMEMBERED:]


def words(room: float) -> str:
    """Return the meaning of a room for the rate, as the rest of a sentence after "a step"."""
    if room < 1:
        return "raises the loss of its own batch: the rate is too large for the curvature"
    if room < 3:
        return "goes about as far as the curvature lets it: that limits the rate, not the noise"
    return (
        "could be that much longer on its own batch: noise or the schedule limits the rate, not the"
        " curvature"
    )


probes.register(
    "step_room",
    "how much longer a step could be before its batch's loss rises",
    "arXiv 2601.16979, 2026 (critical sharpness)",
)(StepRoom)
