"""A path of least loss between two networks, by the string method.

E, Ren, Vanden-Eijnden 2007, "Simplified and improved string method for computing the minimum energy
paths in barrier-crossing events". Draxler et al. 2018 join networks by AutoNEB, which has springs
in the place of equal distances.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from largebatch.lab.digits import Samples
from largebatch.lab.whole_batch import WholeBatch
from largebatch.probes.parameter_space import ParameterSpace


def string(
    model: nn.Module, first: Tensor, last: Tensor, samples: Samples, rounds: int, beads: int = 9
) -> list[Tensor]:
    """Return beads of a path between two vectors of weights that has relaxed, the ends among them.

    Every round moves the beads down the loss, without the part along the path, and puts them at
    equal distances again. It begins on the line; the model's weights are left at a bead.
    """
    space, replay = ParameterSpace(model), WholeBatch(model, samples)
    points = [torch.lerp(first, last, k / (beads - 1)) for k in range(beads)]
    for number in range(rounds):
        rate = 0.5 * (1 - number / rounds)
        moved = [first]
        for before, point, after in zip(points, points[1:], points[2:], strict=False):
            space.set(point)
            gradient = space.flat(replay.gradient())
            along = (after - before) / (after - before).norm()
            moved.append(point - rate * (gradient - along * (along @ gradient)))
        points = evenly([*moved, last])
    return points


def evenly(points: list[Tensor]) -> list[Tensor]:
    """Return as many points at equal distances along the chain of lines through these."""
    steps = [float((b - a).norm()) for a, b in pairwise(points)]
    total, found = sum(steps), [points[0]]
    for number in range(1, len(points) - 1):
        left, k = total * number / (len(points) - 1), 0
        while left > steps[k]:
            left, k = left - steps[k], k + 1
        found.append(torch.lerp(points[k], points[k + 1], left / steps[k]))
    return [*found, points[-1]]
