"""Sharpness: by how much the loss can rise in a small box around the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch.probes.instrument import Instrument, Moment
from largebatch.probes.parameter_space import ParameterSpace
from largebatch.probes.registry import probes
from largebatch.probes.replay import Replay
from largebatch.schedule import Clock, Duration, Every

Box: TypeAlias = Literal["filters", "keskar"]
STEPS = 5
EVERY = "512st"  # as many gradients and forward passes, some seven steps: 2% of the time


def sharpness(
    space: ParameterSpace, replay: Replay, box: Tensor, steps: int, seed: int
) -> tuple[float, float]:
    """Return the loss at the weights, and the largest loss found in a box around the weights.

    Each step moves to the corner of the box to which the gradient points. If the loss is convex
    within the box, no step goes down. The gradient is zero at a minimum, so the ascent starts a
    tenth of the way towards a random corner.

    Args:
        box: half the box's width in every direction, a flat vector.
    """
    weights = space.weights()
    try:
        start = float(replay.loss())
        highest, corner = start, space.random(seed) * 0.1
        for _ in range(steps):
            space.set(weights + corner * box)
            gradient = space.flat(replay.gradient())
            before, corner = corner, torch.where(gradient == 0, corner, gradient.sign())
            if space.norm(corner - before) == 0:  # on all ranks alike
                break
            space.set(weights + corner * box)
            highest = max(highest, float(replay.loss()))
    finally:
        space.set(weights)
    return start, highest


def box_of(kind: Box, space: ParameterSpace, epsilon: float) -> Tensor:
    """Return half the widths of a box around the weights.

    ``keskar``: epsilon (|w| + 1), entry by entry (Keskar et al. 2017, section 2.2.2, with the full
    space). ``filters``: epsilon times the root mean square of the filter's weights, and zero for
    norms and biases (Li et al. 2018). With ``filters``, a network rescaled to compute the same
    function has the same sharpness; Dinh et al. 2017 show that this fails for ``keskar``.
    """
    weights = space.weights()
    if kind == "keskar":
        return epsilon * (weights.abs() + 1)
    widths = []
    for part in space.split(weights):
        if part.ndim < 2:
            widths.append(torch.zeros_like(part))
        else:
            square = part.square().mean(tuple(range(1, part.ndim)), keepdim=True)
            widths.append(epsilon * square.sqrt().expand_as(part))
    return space.flat(widths)


class Sharpness(Instrument):
    """Measures ``sharpness``, in percent: 100 (highest loss in the box - loss) / (1 + loss).

    The loss is that of the step's batch after the step. A few steps of ascent find a lower bound of
    the highest loss.

    Args:
        every: which steps are measured; None: each 512th, about 2% of the time.
        box: ``filters`` or ``keskar``, see :func:`box_of`.
        epsilon: the box's size; Keskar et al. take 1e-3 and 5e-4.
        steps: number of ascent steps, each a gradient and a forward pass.

    Raises:
        UserError: an option out of range.
    """

    name = "sharpness"
    moment = "stepped"
    replays = True

    def __init__(
        self,
        model: nn.Module,
        clock: Clock,
        seed: int,
        every: Every | None = None,
        box: str = "filters",
        epsilon: float = 1e-3,
        steps: int = STEPS,
    ) -> None:
        if box not in ("filters", "keskar"):
            raise UserError(f"box={box!r}: choose from filters, keskar")
        if not isinstance(epsilon, (int, float)) or not 0 < epsilon < 100:
            raise UserError(f"epsilon={epsilon!r}: a number above 0, such as 1e-3")
        if not isinstance(steps, int) or not 1 <= steps <= 100:
            raise UserError(f"steps={steps!r}: a number from 1 to 100")
        self.every = every or Every(Duration.parse(EVERY), clock)
        self._space, self._box, self._epsilon = ParameterSpace(model), box, float(epsilon)
        self._steps, self._seed = steps, seed

    def measure(self, at: Moment) -> Mapping[str, Tensor]:
        """Return the sharpness."""
        replay = at.replay()
        assert replay is not None
        kind: Box = "keskar" if self._box == "keskar" else "filters"
        box = box_of(kind, self._space, self._epsilon)
        start, highest = sharpness(self._space, replay, box, self._steps, self._seed)
        value = 100 * (highest - start) / (1 + start)
        return {"sharpness": torch.tensor(value, dtype=torch.float64)}


probes.register(
    "sharpness",
    "how far the loss can rise in a small box around the weights",
    "Keskar et al. 2017; Li et al. 2018 (filters)",
)(Sharpness)
