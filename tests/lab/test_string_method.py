"""The string method on a loss whose path of least loss is known."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from largebatch.lab.string_method import evenly, string


class Point(nn.Module):
    """Two weights that are the output."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.w


def ring(outputs: Tensor, targets: Tensor) -> Tensor:
    """A valley along the circle of radius 1."""
    return (outputs.square().sum() - 1).square()


def test_a_string_finds_the_way_around_a_hill(monkeypatch) -> None:
    import largebatch.lab.string_method as module

    plain = module.WholeBatch
    monkeypatch.setattr(module, "WholeBatch", lambda m, s: plain(m, s, ring))
    ends = [torch.tensor([math.cos(a), math.sin(a)], dtype=torch.float64) for a in (0.0, 2.5)]
    samples = torch.zeros(1), torch.zeros(1)
    beads = string(Point(), ends[0], ends[1], samples, rounds=200)
    assert torch.equal(beads[0], ends[0]) and torch.equal(beads[-1], ends[1])
    middle = (ends[0] + ends[1]) / 2
    assert float(ring(middle, middle)) > 0.5
    assert max(float(ring(bead, bead)) for bead in beads) < 1e-3


def test_points_are_put_at_equal_distances() -> None:
    corner = [torch.tensor(p) for p in ([0.0, 0.0], [3.0, 0.0], [3.0, 1.0])]
    assert [point.tolist() for point in evenly(corner)] == [[0.0, 0.0], [2.0, 0.0], [3.0, 1.0]]
